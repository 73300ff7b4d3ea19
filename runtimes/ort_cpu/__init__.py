"""ONNX Runtime on the CPU: fused attention, int8 by integer products; fp16 halves the file and gains no speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from runtimes._onnxruntime.engine import executed_engine, graph_file
from runtimes._onnxruntime.lowering import Rule, lower_graph
from runtimes._onnxruntime.rules.attention import lower_attention
from runtimes._onnxruntime.rules.int8_conv import fold_int8_conv_weights
from runtimes._onnxruntime.rules.int8_linear import lower_int8_linears
from runtimes._onnxruntime.saturation import int8_products_saturate
from runtimes._onnxruntime.session import OrtSession, physical_cores
from toolkit.types import Engine, LoweredGraph, QuantizedGraph, Readiness, Session

__all__ = ["KINDS", "RULES", "RUNTIME", "SCHEMES", "OrtCpu"]

SCHEMES = ("fp32", "fp16", "int8", "int8-dynamic")
KINDS = ("encoder", "vision", "module")

RULES: tuple[Rule, ...] = (lower_attention, lower_int8_linears, fold_int8_conv_weights)


class OrtCpu:
    """The runtime `ort-cpu`. The engine is the lowered graph; it needs no compiler and runs anywhere."""

    def readiness(self) -> Readiness:
        """Ready wherever onnxruntime imports; `device` tells of exact but slower int8 on processors without VNNI."""
        int8 = ", no VNNI: int8 takes exact but slower kernels" if int8_products_saturate() else ""
        return Readiness(True, True, f"onnxruntime {ort.__version__}", f"CPU, {physical_cores()} cores{int8}")

    def lower(self, graph: QuantizedGraph, folder: Path) -> LoweredGraph:
        """Write `model.onnx` into `folder`. Raises StageError where a quantized Linear has no integer kernel."""
        return lower_graph(graph, folder, "ort-cpu", RULES)

    def build(self, graph: LoweredGraph) -> Engine:
        """Open the graph and run it once on zeros. Raises StageError where that fails."""
        session = OrtSession(graph.path)
        try:
            return executed_engine(graph, session)
        finally:
            session.close()

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the engine's graph. Raises StageError where ONNX Runtime refuses it."""
        return OrtSession(graph_file(folder, engine))


RUNTIME = OrtCpu()
