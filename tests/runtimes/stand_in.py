"""Stand-ins for a GPU's two libraries, as far as the session calls them: host memory, and engines that are graphs.

They keep the rules that matter: shapes are forgotten with a profile, what is enqueued while capturing does not run,
handles are given back once. tests/runtimes/test_trt_api.py holds the session's calls against the real libraries.
"""

# ruff: noqa: N802, N815 - the libraries' own names
from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from host_program import HostMemory, aliases_of

from runtimes._onnxruntime.feeds import spec_of
from runtimes._tensorrt.profile_choice import Ranges


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureInvalidated = 901


class CudaRuntime:
    """`cuda.bindings.runtime`: every function answers a tuple that begins with its status."""

    cudaError_t = Error
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        self.memory, self.handles = HostMemory(), set[int]()
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches, self.uncapturable = 0, False

    def put(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def __getattr__(self, name: str) -> Any:
        short = name.removeprefix("cuda")
        try:
            return self.__getattribute__(f"_{short}")
        except AttributeError:
            raise AttributeError(name) from None

    def _GetErrorString(self, status: Error) -> tuple[Any, ...]:
        return Error.cudaSuccess, b"said by the stand-in"

    def _GetLastError(self) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def _MemGetInfo(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, (1 << 30) - self.memory.bytes, 1 << 30

    def _StreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, self._handle()

    def _StreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.handles.remove(stream)
        return (Error.cudaSuccess,)

    def _StreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def _Malloc(self, size: int) -> tuple[Any, ...]:
        if size > 1 << 30:
            return Error.cudaErrorMemoryAllocation, None
        return Error.cudaSuccess, self.memory.allocate(size)

    def _Free(self, address: int) -> tuple[Any, ...]:
        self.memory.free(address)
        return (Error.cudaSuccess,)

    _MallocHost, _FreeHost = _Malloc, _Free

    def _MemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        self.memory.copy(target, source, size)
        return (Error.cudaSuccess,)

    def _Memcpy2DAsync(self, *arguments: int) -> tuple[Any, ...]:
        self.memory.copy_rows(*arguments[:6])
        return (Error.cudaSuccess,)

    def _MemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Any, ...]:
        self.memory.clear(address, size)
        return (Error.cudaSuccess,)

    def _StreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        self.recording = []
        return (Error.cudaSuccess,)

    def _StreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        recorded, self.recording = self.recording, None
        if self.uncapturable:
            return Error.cudaErrorStreamCaptureInvalidated, None
        graph = self._handle()
        self.graphs[graph] = recorded or []
        return Error.cudaSuccess, graph

    def _GraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        ready = self._handle()
        self.graphs[ready] = self.graphs[graph]
        return Error.cudaSuccess, ready

    def _GraphDestroy(self, graph: int) -> tuple[Any, ...]:
        self.handles.remove(graph)
        return (Error.cudaSuccess,)

    _GraphExecDestroy = _GraphDestroy

    def _GraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for work in self.graphs[graph]:
            work()
        return (Error.cudaSuccess,)

    def _handle(self) -> int:
        handle = max(self.handles, default=0) + 1
        self.handles.add(handle)
        return handle


class Logger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class TensorLocation(enum.Enum):
    DEVICE, HOST = 0, 1


class TensorRT:
    """A TensorRT module whose engine files hold the path of a graph."""

    __name__, __version__ = "tensorrt", "11.stand-in"
    ILogger, TensorIOMode, TensorLocation = Logger, TensorIOMode, TensorLocation

    def __init__(self, cuda: CudaRuntime, profiles: tuple[Ranges, ...], **odd: Any) -> None:
        self.cuda, self.profiles, self.odd = cuda, profiles, odd
        self.contexts: list[Context] = []

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self._engine(plan, log))

    def nptype(self, dtype: Any) -> Any:
        if dtype.name == "INT4":
            raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
        return np.dtype(dtype.name)

    def _engine(self, plan: bytes, log: Any) -> Any:
        if not Path(plan.decode(errors="replace")).is_file():
            log.log(Logger.ERROR, "the plan is of another version")
            return None
        return Engine(self, plan.decode(), log)


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, trt: TensorRT, path: str, log: Any) -> None:
        self.trt, self.log = trt, log
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = [spec_of(item) for item in self.session.get_inputs()]
        self.outputs = [spec_of(item) for item in self.session.get_outputs()]
        self.specs = {spec.name: spec for spec in (*self.inputs, *self.outputs)}
        self.aliases = aliases_of(Path(path))
        self.num_io_tensors, self.num_optimization_profiles = len(self.specs), len(trt.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.specs)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in [spec.name for spec in self.inputs] else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == self.trt.odd.get("on_host") else TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.trt.odd.get("dtype", self.specs[name].dtype))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.specs[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self.trt.profiles[profile][name]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.aliases.get(name)

    def create_execution_context(self) -> Any:
        self.trt.contexts.append(Context(self))
        return self.trt.contexts[-1]


class Context:
    """Runs the graph on the addresses that were set."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile, self.fails = engine, 0, False
        self.specs = (*engine.inputs, *engine.outputs)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.switches = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile, self.shapes, self.switches = profile, {}, self.switches + 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.trt.profiles[self.profile][name]
        self.shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return bool(address)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == self.engine.trt.odd.get("data_dependent"):
            return (-1,)
        known = {
            dim: size
            for spec in self.engine.inputs
            for dim, size in zip(spec.shape, self.shapes[spec.name], strict=True)
        }
        return tuple(known.get(size, size) for size in self.engine.specs[name].shape)  # type: ignore[misc]

    def execute_async_v3(self, stream: int) -> bool:
        if self.fails:
            self.engine.log.log(Logger.ERROR, "an illegal memory access was encountered")
            return False
        if any(self.addresses[one] != self.addresses[other] for one, other in self.engine.aliases.items()):
            self.engine.log.log(Logger.ERROR, "an output in place lies elsewhere than its input")
            return False
        shapes = {spec.name: self.shapes.get(spec.name) or self.get_tensor_shape(spec.name) for spec in self.specs}
        self.engine.trt.cuda.put(partial(self._run, shapes, dict(self.addresses)))
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        """What a recording holds: shapes and addresses are those of the time when it was enqueued."""
        binding = self.engine.session.io_binding()
        for bind, specs in ((binding.bind_input, self.engine.inputs), (binding.bind_output, self.engine.outputs)):
            for spec in specs:
                bind(spec.name, "cpu", 0, np.dtype(spec.dtype).type, shapes[spec.name], addresses[spec.name])
        self.engine.session.run_with_iobinding(binding)
