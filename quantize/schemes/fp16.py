"""fp16: weights and activations in half precision; normalisations and what overflows stay fp32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from exporters.fused_attention.function import attach_function
from exporters.fused_attention.node import attention_nodes, read
from quantize.calibration import measure_ranges, require
from quantize.half_cast import cast_graph
from quantize.half_precision import Decision, decide, float_values
from quantize.nodes import lift_constants, module_path
from toolkit.errors import StageError
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "Fp16"]

_NAMED = 4


@dataclass(frozen=True)
class Fp16:
    """A strongly typed graph: every tensor has one float dtype, with Cast nodes where the two meet.

    Graph inputs and outputs keep their dtypes. Normalisations and statistics run in fp32, as does every node that
    reads or writes a tensor which came near 65504 on the calibration data, or a constant that fp16 cannot hold.
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
        ranges = measure_ranges(model, float_values(model.graph), given)
        _detach_neutral_inputs(model)
        decisions = decide(model, ranges)
        casts = cast_graph(model, decisions)
        attach_function(model)
        half = sum(decision.half for decision in decisions.values())
        measured = f"{len(ranges)} tensors measured on {given.count} from {given.source}"
        return [
            Step("quantize", "fp16 nodes", half, measured),
            Step("quantize", "Cast nodes added", casts),
            *_kept(decisions),
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
        return "sums and squares of activations pass 65504 or lose small terms"
    texts = [f"{node.op_type} of {module_path(node)}: {detail}" for node, detail in kept]
    more = [f"and {len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return "; ".join([*texts[:_NAMED], *more])


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
