"""Language models for ONNX Runtime as apps have it (Node, browsers, phones): nothing that only the newest has."""

from __future__ import annotations

from pathlib import Path

from runtimes.ort_cpu import OrtCpu
from toolkit.types import DEFAULT_OPTIONS, LoweredGraph, QuantizedGraph, Samples, TargetOptions

__all__ = ["KINDS", "RUNTIME", "SCHEMES", "OrtPortable"]

SCHEMES = ("fp32", "int8", "int4")
KINDS = ("decoder",)
"""Of the others, ort-cpu's graphs hold nothing that older releases lack."""


class OrtPortable(OrtCpu):
    """The runtime `ort-portable`: opened and run as `ort-cpu` is, by graphs without that one's newest operator input.

    `ort-cpu` tells `GroupQueryAttention` which tokens are padding, which needs ONNX Runtime 1.32; npm and the packages
    for phones are behind. Here the cache grows by concatenation inside the standard `Attention`.
    """

    def lower(
        self,
        graph: QuantizedGraph,
        folder: Path,
        samples: Samples | None = None,
        options: TargetOptions = DEFAULT_OPTIONS,
    ) -> LoweredGraph:
        """Write `model.onnx` into `folder`. Raises StageError where a quantized Linear has no integer kernel."""
        from runtimes._onnxruntime.lowering import lower_graph
        from runtimes.ort_portable.rules import RULES

        return lower_graph(graph, folder, "ort-portable", RULES)


RUNTIME = OrtPortable()
