"""Schemes: the canonical graph with its precision written into it, as fp16 or as standard Q/DQ."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from toolkit.types import Calibration, ExportedGraph, PackedWeight, QuantConfig, QuantizedGraph

__all__ = ["quantize"]


def quantize(
    graph: ExportedGraph,
    scheme_name: str,
    calibration: Calibration | None,
    folder: Path,
    packed: Mapping[str, PackedWeight] | None = None,
    recipe: QuantConfig | None = None,
) -> QuantizedGraph:
    """Apply the scheme of that name and write the result to `folder/model.onnx`, weights beside it.

    fp32 changes nothing and keeps the exported file as it is. Weights are read and written one at a time.
    `packed` holds weights that the source had quantized already, by initializer name: weight-only schemes write those
    exactly, the others take the fp32 values that the graph holds. `recipe` takes the place of the scheme's own.
    Raises UsageError for an unknown scheme or missing calibration, StageError where the scheme found
    nothing to change, a weight or a calibration tensor is not finite, or the file cannot be written.
    """
    # Finding `quantize.schemes` imports this package, so listing must not pay for onnx_ir.
    from quantize.stage import apply_scheme

    return apply_scheme(graph, scheme_name, calibration, folder, packed or {}, recipe)
