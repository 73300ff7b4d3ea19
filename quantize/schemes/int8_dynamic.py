"""Dynamic int8: per-channel weights, activation ranges taken from each input as it comes; needs no calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from quantize.linears import Linear, excluded_step, find_linears, quantize_linears, split_excluded
from quantize.nodes import lift_constants, new_node, unused_name
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["KINDS", "SCHEME", "DynamicInt8"]

KINDS = ("encoder", "vision", "module")
"""Not language models: one scale for all of a tensor's outliers ruins them; their int8 is in the weights."""


@dataclass(frozen=True)
class DynamicInt8:
    """Symmetric int8 weights, uint8 activations by `DynamicQuantizeLinear` (opset 11), one scale a tensor.

    Weights [K, N] have scales [N]; the same nodes are quantized as in static int8.
    """

    config: QuantConfig

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """The same for every model."""
        return self.config

    def apply(
        self,
        model: ir.Model,
        spec: ModelSpec,
        calibration: Calibration | None,
        packed: Mapping[str, PackedWeight],
        recipe: QuantConfig | None = None,
    ) -> list[Step]:
        """Rewrite the Linears in place. Raises StageError where a weight is not finite."""
        exclude = (recipe or self.config).exclude
        lift_constants(model)
        linears, excluded = split_excluded(find_linears(model.graph), exclude)
        steps = quantize_linears(model.graph, linears, lambda linear: _dynamic(model.graph, linear))
        return [*steps, *excluded_step(excluded, exclude)]


def _dynamic(graph: ir.Graph, linear: Linear) -> list[ir.Node]:
    name = linear.activation.name or ""
    measure = ir.node("DynamicQuantizeLinear", inputs=[linear.activation], num_outputs=3, name=f"{name}_quantize")
    measure.metadata_props.update(linear.node.metadata_props)
    kinds = (("quantized", ir.DataType.UINT8), ("scale", ir.DataType.FLOAT), ("zero_point", ir.DataType.UINT8))
    for output, (kind, dtype) in zip(measure.outputs, kinds, strict=True):
        output.name = unused_name(graph, f"{name}_{kind}")
        output.dtype = dtype
    restored = unused_name(graph, f"{name}_dequantized")
    return [measure, new_node("DequantizeLinear", list(measure.outputs), restored, linear.node)]


SCHEME = DynamicInt8(
    QuantConfig(
        weights="int8",
        activations="uint8",
        gate=Gate(
            min_sqnr_db=16.5, min_cosine=0.99, max_accuracy_drop=1.0, min_top1_agreement=0.98, min_overlap_at_10=0.87
        ),
    )
)
