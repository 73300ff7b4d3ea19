"""Schemes of 16-bit floats: a strongly typed graph, normalisations and what would overflow kept in fp32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from exporters.fused_attention.function import attach_function
from exporters.fused_attention.node import attention_nodes, read
from quantize.calibration import Range, measure_ranges, require
from quantize.half_cast import cast_graph
from quantize.half_precision import Decision, decide, float_values
from quantize.nodes import lift_constants, module_path
from toolkit.errors import StageError
from toolkit.types import Calibration, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SixteenBits"]

_NAMED = 4


@dataclass(frozen=True)
class SixteenBits:
    """A strongly typed graph: every tensor has one float dtype, with Cast nodes where the two meet.

    `dtype` is float16 or bfloat16. Graph inputs and outputs keep their dtypes. Normalisations and statistics run in
    fp32, as does for float16 every node that reads or writes a tensor which came near 65504 on the calibration data,
    or a constant that fp16 cannot hold. bfloat16 has the range of fp32 and takes no calibration data.
    """

    name: str
    dtype: ir.DataType
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
        """Rewrite the graph in place.

        Raises UsageError without the calibration data that float16 needs, StageError on NaN or an unknown dtype.
        """
        lift_constants(model)
        _infer_dtypes(model, self.name)
        ranges, measured = self._ranges(model, calibration)
        _detach_neutral_inputs(model)
        decisions = decide(model, ranges, self.dtype)
        casts = cast_graph(model, decisions, self.dtype)
        attach_function(model)
        half = sum(decision.half for decision in decisions.values())
        return [
            Step("quantize", f"{self.name} nodes", half, measured),
            Step("quantize", "Cast nodes added", casts),
            *_kept(decisions),
        ]

    def _ranges(self, model: ir.Model, calibration: Calibration | None) -> tuple[Mapping[str, Range], str]:
        if self.config.calibration == "none":
            return {}, "the range of fp32 in 16 bits: nothing overflows"
        given = require(calibration, self.name)
        ranges = measure_ranges(model, float_values(model.graph), given)
        return ranges, f"{len(ranges)} tensors measured on {given.count} from {given.source}"


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


def _detach_neutral_inputs(model: ir.Model) -> None:
    """Stand-ins for absent masks and slopes are made anew in the right dtype when the function is attached again."""
    for node in attention_nodes(model):
        attention = read(node)
        for index, value in enumerate((attention.attn_mask, attention.alibi_slopes), start=3):
            if index < len(node.inputs):
                node.replace_input_with(index, value)


def _kept(decisions: Mapping[ir.Node, Decision]) -> list[Step]:
    """One step a reason: normalisations by count, the others with the modules they concern."""
    by_kind: dict[str, list[tuple[ir.Node, str]]] = defaultdict(list)
    for node, decision in decisions.items():
        if decision.why:
            kind, _, detail = decision.why.partition(": ")
            by_kind[kind].append((node, detail))
    return [Step("quantize", f"kept in fp32: {kind}", len(kept), _details(kept)) for kind, kept in by_kind.items()]


def _details(kept: list[tuple[ir.Node, str]]) -> str:
    if not any(detail for _, detail in kept):
        return "sums and squares of activations overflow or lose small terms"
    texts = [f"{node.op_type} of {module_path(node)}: {detail}" for node, detail in kept]
    more = [f"and {len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return "; ".join([*texts[:_NAMED], *more])
