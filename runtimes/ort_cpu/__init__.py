"""ONNX Runtime on the CPU: fused attention, caches in place, int8 and int4; fp16 halves the file, no speed gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort

from runtimes._onnxruntime.decoder import open_decoder
from runtimes._onnxruntime.engine import executed_engine, graph_file
from runtimes._onnxruntime.kernels.build import instructions, library, reason
from runtimes._onnxruntime.saturation import int8_products_saturate
from runtimes._onnxruntime.session import OrtSession, physical_cores
from toolkit.types import (
    DEFAULT_OPTIONS,
    Decoder,
    DecoderSpec,
    Engine,
    LoweredGraph,
    QuantizedGraph,
    Readiness,
    Samples,
    Session,
    TargetOptions,
)

__all__ = ["EMBEDDINGS", "KINDS", "RANGES", "RUNTIME", "SCHEMES", "UNSIGNED", "OrtCpu"]

SCHEMES = ("fp32", "fp16", "int8", "int8-dynamic", "int4")
KINDS = ("encoder", "vision", "decoder", "module")
EMBEDDINGS = ("float", "int8")
UNSIGNED = ("int8",)
RANGES = ("per-tensor", "per-token")


class OrtCpu:
    """The runtime `ort-cpu`. The engine is the lowered graph; it needs no compiler and runs anywhere."""

    def readiness(self) -> Readiness:
        """Ready wherever onnxruntime imports; `device` tells of exact but slower int8 on processors without VNNI."""
        int8 = ", no VNNI: int8 takes exact but slower kernels" if int8_products_saturate() else ""
        path = library()
        own = f", own {instructions(path)} kernels" if path else f", no own kernels: {reason()}"
        return Readiness(True, True, f"onnxruntime {ort.__version__}", f"CPU, {physical_cores()} cores{int8}{own}")

    def lower(
        self,
        graph: QuantizedGraph,
        folder: Path,
        samples: Samples | None = None,
        options: TargetOptions = DEFAULT_OPTIONS,
    ) -> LoweredGraph:
        """Write `model.onnx` into `folder`. Raises StageError where a quantized Linear has no integer kernel."""
        # The graph library would be a third of what a small model takes in memory while it only runs.
        from runtimes._onnxruntime.lowering import lower_graph
        from runtimes.ort_cpu.rules import rules_for

        return lower_graph(graph, folder, "ort-cpu", rules_for(graph.spec))

    def build(self, graph: LoweredGraph, options: TargetOptions = DEFAULT_OPTIONS) -> Engine:
        """Open the graph and run it once on zeros. Raises StageError where that fails."""
        session = OrtSession(graph.path)
        try:
            engine = executed_engine(graph, session)
        finally:
            session.close()
        return _with_genai(engine)

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the engine's graph. Raises StageError where ONNX Runtime refuses it."""
        return OrtSession(graph_file(folder, engine))

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
        """Open a language model, its cache in place where the graph allows. Raises UsageError for too long a limit."""
        return open_decoder(OrtSession(graph_file(folder, engine)), spec, limit=limit, rows=rows)


def _with_genai(engine: Engine) -> Engine:
    """A language model's engine also carries what onnxruntime-genai needs, or the reason why it cannot drive it."""
    if engine.graph.spec.kind != "decoder":
        return engine
    from runtimes._onnxruntime.genai import write_genai

    made = write_genai(engine.graph.path.parent, engine.graph.spec, engine.graph.path)
    reason = {"genai": made.reason} if made.reason else {}
    return replace(engine, files=(*engine.files, *made.files), details={**engine.details, **reason})


RUNTIME = OrtCpu()
