"""Schemes of 16-bit floats: a strongly typed graph, normalisations and what would overflow kept in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from exporters.fused_attention.function import attach_function
from quantize.calibration import require
from quantize.half_cast import cast_graph
from quantize.half_plan import kept_steps, plan_half
from quantize.nodes import lift_constants
from toolkit.errors import StageError
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SixteenBits"]

_NAMED = 4


@dataclass(frozen=True)
class SixteenBits:
    """A strongly typed graph: every tensor has one float dtype, with Cast nodes where the two meet.

    `dtype` is float16 or bfloat16. Graph inputs and outputs keep their dtypes. Normalisations and statistics run in
    fp32, as does for float16 every node that reads or writes a tensor which came near 65504 on the calibration data,
    an attention whose scores did, and one with a constant that fp16 cannot hold. Residual sums are one stream: all run
    in fp32 where one does. bfloat16 has the range of fp32, so it takes no calibration data, but only 8 significant
    bits, so its residual stream is fp32 always. `decoder` is the gate of language models, where they have one.
    """

    name: str
    dtype: ir.DataType
    config: QuantConfig
    decoder: Gate | None = None

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """The same for every model, but for the gate: language models answer a cache for every layer too."""
        return replace(self.config, gate=self.decoder) if self.decoder and spec.kind == "decoder" else self.config

    def apply(
        self,
        model: ir.Model,
        spec: ModelSpec,
        calibration: Calibration | None,
        packed: Mapping[str, PackedWeight],
        recipe: QuantConfig | None = None,
    ) -> list[Step]:
        """Rewrite the graph in place.

        Raises UsageError without the calibration data that float16 needs, StageError on NaN or an unknown dtype.
        """
        lift_constants(model)
        _infer_dtypes(model, self.name)
        given = require(calibration, self.name) if self.config.calibration != "none" else None
        plan = plan_half(model, given, dtype=self.dtype)
        casts = cast_graph(model, plan.decisions, self.dtype)
        attach_function(model)
        basis = plan.basis if given is not None else "the range of fp32 in 16 bits: nothing overflows"
        return [
            Step("quantize", f"{self.name} nodes", plan.half, basis),
            Step("quantize", "Cast nodes added", casts),
            *kept_steps("quantize", plan.decisions),
        ]


def _infer_dtypes(model: ir.Model, scheme: str) -> None:
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass()(model)
    unknown = [value.name for node in model.graph for value in node.outputs if value.dtype is None and value.uses()]
    if unknown:
        raise StageError(
            "quantize",
            f"the dtype of {', '.join(map(str, unknown[:_NAMED]))} is unknown, so {scheme} cannot be typed",
            hint="Export again with a current ONNX opset; shape inference must know every operator.",
        )
