"""The one place that measures a graph and decides what of it runs in 16 bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from exporters.fused_attention.node import attention_nodes, read
from quantize.calibration import measure_ranges
from quantize.half_precision import HALF, Decision, decide, float_values
from quantize.hidden_ranges import Hidden, Kind, hidden_of
from quantize.histogram import Range
from quantize.nodes import constant, module_path
from quantize.residuals import residual_sums
from toolkit.types import Calibration, Step

__all__ = ["HalfPlan", "kept_steps", "plan_half"]

_STREAM = "residual stream: another of its sums has to be"
_STREAM_BF16 = "residual stream: 8 significant bits would lose what a layer adds"
_UNMEASURED = "sums and squares of activations overflow or lose small terms"


@dataclass(frozen=True, slots=True)
class HalfPlan:
    """What was decided for every node, and what it rests on."""

    decisions: dict[ir.Node, Decision]
    basis: str

    @property
    def half(self) -> int:
        """How many nodes run in 16 bits."""
        return sum(decision.half for decision in self.decisions.values())


def plan_half(
    model: ir.Model,
    calibration: Calibration | None,
    proven: Mapping[str, float] | None = None,
    dtype: ir.DataType = HALF,
) -> HalfPlan:
    """Measure every float32 value, and what fused nodes hide, and decide; `proven` bounds what is not measured.

    Stand-ins for absent masks and slopes leave the attention nodes, since they change their dtype.
    Without `calibration` bounds alone decide. Raises StageError that names a tensor which holds NaN.
    """
    hidden = hidden_of(model.graph) if calibration is not None else []
    ranges: dict[str, Range] = {}
    basis = "ranges proven from the scales; nothing was measured"
    if calibration is not None:
        ranges = measure_ranges(model, list(_measurable(model.graph)), calibration, hidden)
        basis = f"{len(ranges)} tensors measured on {calibration.count} from {calibration.source}"
    _detach_neutral_inputs(model)
    names = {str(value.name) for value in float_values(model.graph)}
    bounds = {name: bound for name, bound in (proven or {}).items() if name in names}
    decisions = decide(model, ranges, bounds, _inside(hidden, ranges), dtype)
    return HalfPlan({**decisions, **_whole_stream(model.graph, decisions, dtype)}, basis)


def _whole_stream(
    graph: ir.Graph, decisions: Mapping[ir.Node, Decision], dtype: ir.DataType
) -> dict[ir.Node, Decision]:
    """All residual sums in fp32 where one of them has to be, and always where the others would be bfloat16.

    It is one stream: what is rounded at the first layers is carried through all later ones, and casts between two
    precisions cost more than one of them. With bfloat16's 8 significant bits the stream would lose what a layer adds.
    """
    sums = list(residual_sums(graph))
    wide = any(decisions[node].why.startswith("range") for node in sums)
    if not wide and dtype == HALF:
        return {}
    why = _STREAM if wide else _STREAM_BF16
    return {node: Decision(False, why) for node in sums if not decisions[node].why}


def kept_steps(stage: str, decisions: Mapping[ir.Node, Decision]) -> list[Step]:
    """One step a reason, with each module that it kept in fp32, the tensor and the number; the largest first."""
    by_kind: dict[str, list[tuple[ir.Node, Decision]]] = defaultdict(list)
    for node, decision in decisions.items():
        if decision.why:
            by_kind[decision.why.partition(": ")[0]].append((node, decision))
    return [Step(stage, f"kept in fp32: {kind}", len(kept), _details(kept)) for kind, kept in by_kind.items()]


def _details(kept: list[tuple[ir.Node, Decision]]) -> str:
    ordered = sorted(kept, key=lambda each: -each[1].magnitude)
    details = [(node, decision.why.partition(": ")[2]) for node, decision in ordered]
    texts = [f"{node.op_type} of {module_path(node)}: {detail}" for node, detail in details if detail]
    rest = len(kept) - len(texts)
    return "; ".join([*texts, *([f"{rest} more: {_UNMEASURED}" if texts else _UNMEASURED] if rest else [])])


def _measurable(graph: ir.Graph) -> Iterator[ir.Value]:
    """All float32 values but dequantized weights: the runtime folds those, and their bounds are in their scales."""
    stored: set[ir.Value] = set()
    for node in graph:
        computed = [value for value in node.inputs if value is not None and constant(value) is None]
        from_weight = node.op_type == "DequantizeLinear" and not computed
        if from_weight or (computed and all(value in stored for value in computed)):
            stored.update(node.outputs)
    yield from (value for value in float_values(graph) if value not in stored)


def _inside(hidden: list[Hidden], ranges: Mapping[str, Range]) -> dict[ir.Node, dict[Kind, float]]:
    found: dict[ir.Node, dict[Kind, float]] = defaultdict(dict)
    for each in hidden:
        if each.name in ranges:
            found[each.node][each.kind] = ranges[each.name].absmax
    return found


def _detach_neutral_inputs(model: ir.Model) -> None:
    """They are made anew in the right dtype when the function is attached again, or not needed after lowering."""
    for node in attention_nodes(model):
        attention = read(node)
        for index, value in enumerate((attention.attn_mask, attention.alibi_slopes), start=3):
            if index < len(node.inputs):
                node.replace_input_with(index, value)
