"""OpenVINO on the CPU: fused attention, bf16 and int8 where the graph says so; needs the extra [openvino]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtimes.openvino.compile import build_engine
from runtimes.openvino.library import readiness
from runtimes.openvino.lowering import lower_graph
from runtimes.openvino.session import OpenVinoSession, open_session
from toolkit.generation.session_decoder import SessionDecoder
from toolkit.types import (
    DEFAULT_OPTIONS,
    Decoder,
    DecoderSpec,
    Engine,
    LoweredGraph,
    QuantizedGraph,
    Readiness,
    Samples,
    TargetOptions,
)

__all__ = ["EMBEDDINGS", "KINDS", "RUNTIME", "SCHEMES", "UNSIGNED", "OpenVino"]

SCHEMES = ("fp32", "bf16", "int8")
KINDS = ("encoder", "vision", "decoder", "module")
EMBEDDINGS = ("float", "int8")
UNSIGNED = ("int8",)


class OpenVino:
    """The runtime `openvino`. The engine is OpenVINO's own intermediate representation, `model.xml` and `model.bin`.

    Without the library a graph is lowered all the same; then its engine is `graph-only`.
    """

    def readiness(self) -> Readiness:
        """Ready where the library imports and has a CPU device; `device` says whether that knows bf16 and int8."""
        return readiness()

    def lower(
        self,
        graph: QuantizedGraph,
        folder: Path,
        samples: Samples | None = None,
        options: TargetOptions = DEFAULT_OPTIONS,
    ) -> LoweredGraph:
        """Write `model.onnx`, standard ONNX alone, into `folder`. Raises StageError where that fails."""
        return lower_graph(graph, folder)

    def build(self, graph: LoweredGraph, options: TargetOptions = DEFAULT_OPTIONS) -> Engine:
        """Write the intermediate representation beside the graph, compile it and run it once.

        Raises StageError where OpenVINO refuses the graph, or a product runs in another precision than the graph says.
        """
        return build_engine(graph)

    def session(self, folder: Path, engine: Mapping[str, Any]) -> OpenVinoSession:
        """Open the engine. Raises MissingDependencyError without the library, StageError where it does not load."""
        return open_session(folder, engine)

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
        """Open a language model whose cache goes out and comes back in; raises as `session` does."""
        session = open_session(folder, engine)
        return SessionDecoder(session, session.inputs, spec, limit=limit, rows=rows)


RUNTIME = OpenVino()
