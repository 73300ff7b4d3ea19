"""The few calls of the CUDA runtime that an engine needs, on one stream of their own.

Signatures are those of `cuda.bindings.runtime` 13, where each function answers a tuple that begins with its status.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from toolkit.errors import MissingDependencyError, StageError

__all__ = ["INSTALL", "Cuda", "missing"]

INSTALL = "pip install 'cuda-bindings>=13,<14'"

_MODULE = "cuda.bindings.runtime"
_HINTS = {
    "cudaErrorMemoryAllocation": "Give smaller sizes, or close what else uses the device; `nvidia-smi` shows it.",
    "cudaErrorInsufficientDriver": "Install a newer NVIDIA driver: CUDA 13 needs 580 or newer.",
}
_HINT = "`toolkit doctor` shows the device, `nvidia-smi` what else uses it."


def missing() -> str:
    """Why CUDA cannot be called from Python here, with what to install; empty where it can."""
    try:
        found = importlib.util.find_spec(_MODULE) is not None
    except ModuleNotFoundError:
        found = False
    return "" if found else f"cuda.bindings is not installed ({INSTALL})"


class Cuda:
    """Memory of the first device, and one stream. Raises MissingDependencyError without `cuda.bindings`.

    All calls but those that give something back raise StageError with CUDA's own name of the error.
    """

    def __init__(self) -> None:
        try:
            self._api: Any = importlib.import_module(_MODULE)
        except ImportError as error:
            raise MissingDependencyError("cuda.bindings is not installed", hint=INSTALL) from error
        kinds, modes = self._api.cudaMemcpyKind, self._api.cudaStreamCaptureMode
        # Which side is which follows from the addresses: unified addressing is on wherever CUDA 13 runs.
        self._any, self._capture = kinds.cudaMemcpyDefault, modes.cudaStreamCaptureModeThreadLocal
        self._stream: Any = self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)

    @property
    def stream(self) -> int:
        """The stream's handle as TensorRT takes it."""
        return int(self._stream)

    def allocate(self, size: int) -> int:
        """See `Memory`."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """See `Memory`."""
        self._give_back("cudaFree", address)

    def allocate_pinned(self, size: int) -> int:
        """See `Memory`."""
        return int(self._call("cudaMallocHost", size))

    def free_pinned(self, address: int) -> None:
        """See `Memory`."""
        self._give_back("cudaFreeHost", address)

    def copy(self, target: int, source: int, size: int) -> None:
        """See `Memory`."""
        self._call("cudaMemcpyAsync", target, source, size, self._any, self._stream)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        """See `Memory`."""
        self._call(
            "cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, height, self._any, self._stream
        )

    def clear(self, address: int, size: int) -> None:
        """See `Memory`."""
        self._call("cudaMemsetAsync", address, 0, size, self._stream)

    def synchronize(self) -> None:
        """See `Memory`."""
        self._call("cudaStreamSynchronize", self._stream)

    def free_bytes(self) -> int:
        """Bytes of the device that no process uses."""
        status, free, _ = self._api.cudaMemGetInfo()
        self._check("cudaMemGetInfo", status)
        return int(free)

    def record(self, enqueue: Callable[[], None]) -> Any:
        """An executable CUDA graph of what `enqueue` puts on the stream; nothing of it runs.

        Raises what `enqueue` raises, and StageError where it cannot be captured; the stream is usable again.
        """
        self._call("cudaStreamBeginCapture", self._stream, self._capture)
        try:
            enqueue()
        except BaseException:
            self._abandon()
            raise
        try:
            graph = self._call("cudaStreamEndCapture", self._stream)
        except StageError:
            self._api.cudaGetLastError()
            raise
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._give_back("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Run a recorded graph, in the stream's order."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def drop(self, graph: Any) -> None:
        """Give a recorded graph back; never raises."""
        self._give_back("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Destroy the stream."""
        if self._stream is not None:
            self._give_back("cudaStreamDestroy", self._stream)
            self._stream = None

    def _abandon(self) -> None:
        """Leave capture mode after a failure, and forget its error: the next call would answer it again."""
        status, graph = self._api.cudaStreamEndCapture(self._stream)
        if self._succeeded(status):
            self._give_back("cudaGraphDestroy", graph)
        self._api.cudaGetLastError()

    def _call(self, name: str, *arguments: Any) -> Any:
        """The result of `name`, without its status; None where it has no result."""
        status, *results = getattr(self._api, name)(*arguments)
        self._check(name, status)
        return results[0] if results else None

    def _give_back(self, name: str, handle: Any) -> None:
        # After an error that broke the device's context, freeing fails too and the first error is the one to see.
        getattr(self._api, name)(handle)

    def _check(self, name: str, status: Any) -> None:
        if not self._succeeded(status):
            error = str(getattr(status, "name", status))
            _, text = self._api.cudaGetErrorString(status)
            said = f": {text.decode()}" if text else ""
            raise StageError("run", f"{name} answered {error}{said}", hint=_HINTS.get(error, _HINT))

    def _succeeded(self, status: Any) -> bool:
        return bool(status == self._api.cudaError_t.cudaSuccess)
