"""ONNX Runtime's exceptions told as the toolkit's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from onnxruntime.capi import onnxruntime_pybind11_state as state

from toolkit.errors import StageError

__all__ = ["FAILURES", "MEANINGS", "as_stage_error"]

MEANINGS: Mapping[type[Exception], str] = {
    state.DeviceReset: "the device was reset; run it again",
    state.EPFail: "the execution provider failed; `toolkit doctor` says what works here",
    state.EngineError: "a compiled engine inside the graph failed; build it again on this machine",
    state.Fail: "ONNX Runtime refused the graph or failed while running it",
    state.InvalidArgument: "an input or an option does not fit the graph",
    state.InvalidGraph: "the graph breaks the ONNX rules; `toolkit inspect` shows what is in it",
    state.InvalidProtobuf: "the file is not an ONNX graph, or it is cut off",
    state.ModelLoadCanceled: "loading was cancelled",
    state.ModelLoaded: "the session already holds a graph",
    state.ModelRequiresCompilation: "the graph must be compiled for this provider first",
    state.NoModel: "the session holds no graph",
    state.NoSuchFile: "a file is missing; the weights lie beside the graph in `<name>.data`",
    state.NotFound: "a file or a name in the graph is missing",
    state.NotImplemented: "this build of ONNX Runtime has no kernel for an operator of the graph",
    state.RuntimeException: "ONNX Runtime failed while loading or running the graph",
}
"""Every exception class of ONNX Runtime and what it means for the reader."""

FAILURES: tuple[type[Exception], ...] = (*MEANINGS, RuntimeError, ValueError)
"""Also what its Python binding raises where a GPU provider or an option of it does not do."""
_UNKNOWN = "the execution provider or one of its options does not do here; `toolkit doctor` says what works"


@contextmanager
def as_stage_error(stage: str, subject: str) -> Iterator[None]:
    """Raise StageError, `from` the original, for whatever ONNX Runtime raises inside the block."""
    try:
        yield
    except FAILURES as error:
        detail = " ".join(str(error).split())
        raise StageError(stage, f"{subject}: {detail}", hint=_sentence(MEANINGS.get(type(error), _UNKNOWN))) from error


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
