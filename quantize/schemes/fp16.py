"""fp16: weights and activations in half precision; normalisations and what overflows stay fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from exporters.fused_attention.function import attach_function
from quantize.calibration import require
from quantize.half_cast import cast_graph
from quantize.half_plan import kept_steps, plan_half
from quantize.nodes import lift_constants
from toolkit.errors import StageError
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "Fp16"]

_NAMED = 4


@dataclass(frozen=True)
class Fp16:
    """A strongly typed graph: every tensor has one float dtype, with Cast nodes where the two meet.

    Graph inputs and outputs keep their dtypes. Normalisations and statistics run in fp32, as does every node that
    reads or writes a tensor which came near 65504 on the calibration data, an attention whose scores did, and one with
    a constant that fp16 cannot hold.
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
        """Rewrite the graph in place. Raises UsageError without calibration, StageError on NaN or an unknown dtype."""
        given = require(calibration, "fp16")
        lift_constants(model)
        _infer_dtypes(model)
        plan = plan_half(model, given)
        casts = cast_graph(model, plan.decisions)
        attach_function(model)
        return [
            Step("quantize", "fp16 nodes", plan.half, plan.basis),
            Step("quantize", "Cast nodes added", casts),
            *kept_steps("quantize", plan.decisions),
        ]


def _infer_dtypes(model: ir.Model) -> None:
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass()(model)
    unknown = [value.name for node in model.graph for value in node.outputs if value.dtype is None and value.uses()]
    if unknown:
        raise StageError(
            "quantize",
            f"the dtype of {', '.join(map(str, unknown[:_NAMED]))} is unknown, so fp16 cannot be typed",
            hint="Export again with a current ONNX opset; shape inference must know every operator.",
        )


SCHEME = Fp16(
    QuantConfig(
        weights="float16",
        activations="float16",
        gate=Gate(
            min_sqnr_db=50.0, min_cosine=0.9999, max_accuracy_drop=0.5, min_top1_agreement=0.99, min_overlap_at_10=0.98
        ),
        calibration="minmax",
    )
)
