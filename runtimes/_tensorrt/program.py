"""An engine in a GPU's memory: shapes are set, addresses bound and runs put on a stream.

The same for `tensorrt` and `tensorrt_rtx`. What moves tensors to the device and back is built on the protocol
`Program`, and so runs without a GPU where something else serves as one.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 and float8 by name once it is imported
import numpy as np

from runtimes._tensorrt.builder import INSTALL
from runtimes._tensorrt.cuda import Cuda
from runtimes._tensorrt.devices import Device
from runtimes._tensorrt.errorlog import make_error_log
from runtimes._tensorrt.memory import Memory
from runtimes._tensorrt.profile_choice import Ranges, Shape, choose_profile
from runtimes._tensorrt.replay import Replay
from toolkit.errors import MissingDependencyError, StageError, UnsupportedError, UsageError
from toolkit.types import DeviceMemory, TensorSpec

__all__ = ["CUDA_GRAPHS", "EngineProgram", "Program"]

CUDA_GRAPHS = "TOOLKIT_CUDA_GRAPHS"
"""The environment variable that, set to 1, asks for CUDA graphs."""

_REBUILD = "An engine loads only with the version that built it: export again on this machine."
_NO_NUMPY = {"BF16": "bfloat16", "FP8": "float8_e4m3fn"}


class Program(Protocol):
    """Something compiled that runs on addresses: an engine, with the memory that its tensors live in.

    `aliases` are the outputs that are written into an input in place, and that input: both want one address.
    """

    ran_on: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    aliases: Mapping[str, str]
    memory: Memory

    def shape(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Set every input's shape and answer every output's. Raises UsageError for shapes it was not made for."""
        ...

    def bind(self, name: str, address: int) -> None:
        """Say where a tensor lies, in device memory; asked again at every run."""
        ...

    def enqueue(self) -> None:
        """Put one run on the stream. Raises StageError where the device refuses."""
        ...

    def device_memory(self, buffers: int) -> DeviceMemory:
        """What is in use, `buffers` of it by the caller."""
        ...

    def close(self) -> None:
        """Free everything; may be called again."""
        ...


class EngineProgram:
    """An engine file on the first GPU, with `library` (`tensorrt` or `tensorrt_rtx`); see `Program`.

    `graphs` asks for CUDA graphs (default: whether TOOLKIT_CUDA_GRAPHS is 1). TensorRT-RTX records them itself, since
    it alone knows when the kernels for a shape are ready. One context serves all profiles. Raises
    MissingDependencyError where the library or `cuda.bindings` is not installed, StageError where the engine does not
    load, UnsupportedError for an input or output that this session cannot serve.
    """

    def __init__(self, path: Path, library: str, device: Device, *, graphs: bool | None = None) -> None:
        self._context: Any = None
        self._engine: Any = None
        self._runtime: Any = None
        self._trt = _import(library)
        self._cuda = Cuda()
        self.memory: Memory = self._cuda
        wanted = os.environ.get(CUDA_GRAPHS) == "1" if graphs is None else graphs
        self._own_graphs = wanted and library == "tensorrt_rtx"
        self.replay = Replay(self._cuda, wanted=wanted and not self._own_graphs)
        self._profile, self._shapes, self._addresses = 0, dict[str, Shape](), dict[str, int]()
        try:
            self._free_before = self._cuda.free_bytes()
            self._load(path)
            self._describe()
        except BaseException:
            self.close()
            raise
        self.ran_on = f"{library} {self._trt.__version__} {device.name}"

    def shape(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Choose the profile, set what changed, answer the outputs' shapes; see `Program`."""
        self._require_open()
        chosen = choose_profile(self._profiles, shapes)
        if chosen != self._profile:
            self._switch(chosen)
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                self._check(self._context.set_input_shape(name, shape), f"'{name}' does not take the shape {shape}")
                self._shapes[name] = shape
        return {spec.name: self._output_shape(spec.name) for spec in self.outputs}

    def bind(self, name: str, address: int) -> None:
        """Set the address where it changed; see `Program`."""
        if self._addresses.get(name) != address:
            self._check(self._context.set_tensor_address(name, address), f"'{name}' does not take its address")
            self._addresses[name] = address

    def enqueue(self) -> None:
        """Run, or replay the recording of the same run; see `Program`."""
        key = (self._profile, tuple(sorted(self._shapes.items())), tuple(sorted(self._addresses.items())))
        self.replay.run(key, self._execute)

    def device_memory(self, buffers: int) -> DeviceMemory:
        """The fall of the device's free memory since before the engine was read, and what is known of it."""
        self._require_open()
        used = self._free_before - self._cuda.free_bytes()
        return DeviceMemory(used, int(self._engine.device_memory_size_v2), buffers)

    def close(self) -> None:
        """Free context, engine, runtime and stream, in that order."""
        self.replay.forget()
        self._context = None
        self._engine = None
        self._runtime = None
        self._cuda.close()

    def _load(self, path: Path) -> None:
        self._log = make_error_log(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            version = self._trt.__version__
            raise StageError(
                "session", f"{self._trt.__name__} {version} does not load {path}: {self._log.take()}", hint=_REBUILD
            )
        self._context = self._make_context()
        if self._context is None:
            raise StageError(
                "session", f"no context for {path}: {self._log.take()}", hint="The device's memory may be full."
            )

    def _make_context(self) -> Any:
        if not self._own_graphs:
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.replay.reason = "TensorRT-RTX records CUDA graphs itself"
        return self._engine.create_execution_context(config)

    def _describe(self) -> None:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        wanted = self._trt.TensorIOMode
        self.inputs = tuple(self._spec(name) for name in names if modes[name] == wanted.INPUT)
        self.outputs = tuple(self._spec(name) for name in names if modes[name] == wanted.OUTPUT)
        self.aliases: Mapping[str, str] = self._aliases()
        count = self._engine.num_optimization_profiles
        self._profiles = tuple(self._ranges(profile) for profile in range(max(count, 1)))

    def _aliases(self) -> dict[str, str]:
        """Libraries before KV cache updates had no such question, and no such outputs."""
        if not hasattr(self._engine, "get_aliased_input_tensor"):
            return {}
        asked = {spec.name: self._engine.get_aliased_input_tensor(spec.name) for spec in self.outputs}
        return {output: source for output, source in asked.items() if source}

    def _spec(self, name: str) -> TensorSpec:
        if self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise UnsupportedError(
                f"'{name}' is a tensor of sizes, which TensorRT reads on the host",
                hint="Export a model whose inputs and outputs are all data.",
            )
        shape = tuple("?" if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        return TensorSpec(name, _dtype(self._trt, self._engine.get_tensor_dtype(name), name), shape)

    def _ranges(self, profile: int) -> Ranges:
        return {spec.name: self._range(spec, profile) for spec in self.inputs}

    def _range(self, spec: TensorSpec, profile: int) -> tuple[Shape, Shape, Shape]:
        fixed = tuple(size for size in spec.shape if isinstance(size, int))
        if len(fixed) == len(spec.shape):
            return fixed, fixed, fixed
        least, usual, most = self._engine.get_tensor_profile_shape(spec.name, profile)
        return tuple(least), tuple(usual), tuple(most)

    def _switch(self, profile: int) -> None:
        """Take another profile; every shape must be said again after that. The stream keeps the order."""
        self.replay.forget()
        done = self._context.set_optimization_profile_async(profile, self._cuda.stream)
        self._check(done, f"the engine's profile {profile} is not free")
        self._profile, self._shapes = profile, {}

    def _output_shape(self, name: str) -> Shape:
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise UnsupportedError(
                f"the size of output '{name}' depends on the inputs' values",
                hint="Export a model whose outputs have sizes that follow from its inputs' shapes.",
            )
        return shape

    def _execute(self) -> None:
        self._check(self._context.execute_async_v3(self._cuda.stream), "the engine did not run")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise StageError("run", f"{what}: {self._log.take()}", hint="`toolkit doctor` shows the device.")

    def _require_open(self) -> None:
        if self._context is None:
            raise UsageError("the session is closed", hint="Open it again.")


def _dtype(trt: Any, dtype: Any, name: str) -> str:
    """The numpy name of a tensor's dtype; numpy itself has neither bf16 nor fp8."""
    if dtype.name in _NO_NUMPY:
        return _NO_NUMPY[dtype.name]
    try:
        return str(np.dtype(trt.nptype(dtype)).name)
    except TypeError as error:
        raise UnsupportedError(f"'{name}' is {dtype.name}, which numpy does not have") from error


def _import(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise MissingDependencyError(f"{library} is not installed", hint=INSTALL[library]) from error
