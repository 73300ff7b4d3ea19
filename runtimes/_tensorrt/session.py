"""Running a compiled engine on a GPU through TensorRT's own runtime; TensorRT-RTX has the same interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes._onnxruntime.feeds import check_feeds
from runtimes._tensorrt.devices import Device
from toolkit.errors import MissingDependencyError, StageError, UsageError
from toolkit.types import Tensors, TensorSpec

__all__ = ["EngineSession"]


class EngineSession:
    """An engine file on the first GPU, with `library` (`tensorrt` or `tensorrt_rtx`).

    Raises MissingDependencyError where the library or `cuda.bindings` is not installed, StageError where the
    engine does not load.
    """

    def __init__(self, path: Path, library: str, device: Device) -> None:
        self._trt = _import(library, f"pip install '{_PACKAGES[library]}'")
        self._cuda = _Cuda()
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise StageError("session", f"{library} {self._trt.__version__} does not load {path}", hint=_REBUILD)
        self._context = self._engine.create_execution_context()
        self._stream = self._cuda.call("cudaStreamCreate")
        self._profile = 0
        self.inputs = tuple(self._spec(name) for name in self._names("INPUT"))
        self.outputs = tuple(self._spec(name) for name in self._names("OUTPUT"))
        self.ran_on = f"{library} {self._trt.__version__} {device.name}"

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name.

        Raises UsageError for inputs that the engine does not take, StageError where the device fails.
        """
        if self._context is None:
            raise UsageError("the session is closed", hint="Open it again.")
        feeds = check_feeds(inputs, self.inputs)
        self._choose_profile(feeds)
        buffers: dict[str, int] = {}
        try:
            self._feed(feeds, buffers)
            outputs = self._make_outputs(buffers)
            if not self._context.execute_async_v3(self._stream):
                raise StageError("run", "the engine did not run", hint="The log of TensorRT says why.")
            return self._fetch(outputs, buffers)
        finally:
            for address in buffers.values():
                self._cuda.call("cudaFree", address)

    def close(self) -> None:
        """Free the engine and its stream."""
        if self._context is not None:
            self._cuda.call("cudaStreamDestroy", self._stream)
            self._context = self._engine = self._runtime = None

    def _choose_profile(self, feeds: Tensors) -> None:
        """The first profile whose ranges hold every shape; the last where none does, for its error."""
        last = self._engine.num_optimization_profiles - 1
        chosen = next((index for index in range(last) if self._fits(feeds, index)), last)
        if chosen == self._profile:
            return
        if not self._context.set_optimization_profile_async(chosen, self._stream):
            raise StageError("run", f"the engine's profile {chosen} is not free", hint="Close other sessions.")
        self._profile = chosen

    def _fits(self, feeds: Tensors, profile: int) -> bool:
        return all(self._holds(name, array.shape, profile) for name, array in feeds.items())

    def _holds(self, name: str, shape: tuple[int, ...], profile: int) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def _feed(self, feeds: Tensors, buffers: dict[str, int]) -> None:
        for name, array in feeds.items():
            if not self._context.set_input_shape(name, array.shape):
                limits = self._engine.get_tensor_profile_shape(name, self._profile)
                raise UsageError(
                    f"the shape {list(array.shape)} of '{name}' is outside what the engine was built for",
                    hint=f"Smallest {tuple(limits[0])}, largest {tuple(limits[2])}; export again with --dim.",
                )
            dense = np.ascontiguousarray(array)
            self._place(name, dense.nbytes, buffers)
            self._cuda.copy(buffers[name], dense.ctypes.data, dense.nbytes, "HostToDevice", self._stream)

    def _make_outputs(self, buffers: dict[str, int]) -> dict[str, NDArray[Any]]:
        made = {}
        for spec in self.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            made[spec.name] = np.empty(shape, spec.dtype)
            self._place(spec.name, made[spec.name].nbytes, buffers)
        return made

    def _fetch(self, outputs: dict[str, NDArray[Any]], buffers: dict[str, int]) -> dict[str, NDArray[Any]]:
        for name, array in outputs.items():
            self._cuda.copy(array.ctypes.data, buffers[name], array.nbytes, "DeviceToHost", self._stream)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        return outputs

    def _place(self, name: str, size: int, buffers: dict[str, int]) -> None:
        buffers[name] = self._cuda.call("cudaMalloc", max(size, 1))
        self._context.set_tensor_address(name, buffers[name])

    def _names(self, mode: str) -> list[str]:
        wanted = getattr(self._trt.TensorIOMode, mode)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == wanted]

    def _spec(self, name: str) -> TensorSpec:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))).name
        shape = tuple("?" if dim < 0 else int(dim) for dim in self._engine.get_tensor_shape(name))
        return TensorSpec(name, dtype, shape)


_PACKAGES = {"tensorrt": "tensorrt-cu13>=11", "tensorrt_rtx": "tensorrt-rtx-cu13>=1.7"}
_REBUILD = "An engine loads only with the version that built it: export again on this machine."


class _Cuda:
    """The few calls of the CUDA runtime that a session needs; each failure is a StageError with CUDA's own name."""

    def __init__(self) -> None:
        self._api = _import("cuda.bindings.runtime", "pip install cuda-python")

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of `name`, without its status; None where it has no result."""
        function: Callable[..., tuple[Any, ...]] = getattr(self._api, name)
        status, *results = function(*arguments)
        if status != self._api.cudaError_t.cudaSuccess:
            raise StageError("run", f"{name} answered {status.name}", hint="`toolkit doctor` shows the device.")
        return results[0] if results else None

    def copy(self, target: int, source: int, size: int, direction: str, stream: Any) -> None:
        """Copy `size` bytes in the stream's order."""
        kind = getattr(self._api.cudaMemcpyKind, f"cudaMemcpy{direction}")
        self.call("cudaMemcpyAsync", target, source, size, kind, stream)


def _import(module: str, command: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"{module} is not installed", hint=f"{command}") from error
