"""Weights as indices into small tables: plan, choose the tables, write, and say what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.gptq import Hessian, in_turn
from quantize.linears import drop_unused, excluded_step, find_linears
from quantize.matmuls import last_linears
from quantize.palette_nodes import write_palettes
from quantize.palettes import Palettes, fit, look_up, nearest_in
from quantize.sequential import walk
from quantize.smoothing import Group, find_groups
from quantize.weight_only import Parts, find_parts
from quantize.weights import Weight
from toolkit.types import Calibration, ModelSpec, QuantConfig, Step

__all__ = ["palettize"]

_BITS, _SENSITIVE_BITS = 4, 8
_MORE_CHANNELS = 16
"""A table of 256 entries serves so many times the channels of one of 16, so that it takes no larger share."""
_WORST_SHARE = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """A weight [K, N], or an embedding table [V, K], and how it is palettized."""

    weight: Weight
    bits: int
    channels: int
    axis: int

    def fit(self, importance: NDArray[np.float32] | None = None) -> Palettes:
        return self.weight.read(lambda array: fit(array, self.bits, self.channels, self.axis, importance))


def palettize(
    model: ir.Model, spec: ModelSpec, recipe: QuantConfig, calibration: Calibration | None, channels: int
) -> list[Step]:
    """Give all Linears tables of 16 entries, one for each `channels` output channels as far as those divide, in place.

    The last Linear before an output and a decoder's embedding tables take 256 entries. With calibration data and the
    rounding `gptq`, tables weigh each input channel by what it holds, and indices make good one another's errors.
    Raises StageError where a weight is NaN, Inf or beyond float16, or an activation is not finite.
    """
    parts = find_parts(model, spec, recipe.exclude)
    plans = _plans(model.graph, parts, channels)
    work = _Work(plans)
    by_data = calibration is not None and recipe.rounding == "gptq"
    if calibration is not None and by_data:
        wanted = {node for plan in plans if plan.bits == _BITS for node in plan.weight.readers}
        walk(
            model,
            find_groups(each for each in find_linears(model.graph) if each.node in wanted),
            calibration,
            work.round_group,
        )
    for plan in plans:
        work.write(model.graph, plan)
    how = f"gptq; {calibration.count} from {calibration.source}" if calibration is not None and by_data else "nearest"
    return [*_counts(plans, how), *excluded_step(parts.excluded, recipe.exclude)]


def _plans(graph: ir.Graph, parts: Parts, channels: int) -> list[_Plan]:
    last = last_linears(graph, parts.linears)
    readers: dict[ir.Value, list[ir.Node]] = {}
    for linear in parts.linears:
        readers.setdefault(linear.weight, []).append(linear.node)
    plans = []
    for value, nodes in readers.items():
        bits = _SENSITIVE_BITS if last & set(nodes) else _BITS
        plans.append(_planned(Weight(value, tuple(nodes), None), bits, channels, 1))
    for table in parts.tables:
        weight = Weight(table.weight, (*table.gathers, *table.heads), None, table=table)
        plans.append(_planned(weight, _SENSITIVE_BITS, channels, 0))
    return plans


def _planned(weight: Weight, bits: int, channels: int, axis: int) -> _Plan:
    wanted = channels if bits == _BITS else channels * _MORE_CHANNELS
    return _Plan(weight, bits, _dividing(int(weight.tensor.shape[axis]), wanted), axis)


def _dividing(count: int, wanted: int) -> int:
    """The largest number up to `wanted` that divides `count`, or all of them where tables would outgrow the weights."""
    best = max(size for size in range(1, min(count, wanted) + 1) if count % size == 0)
    return best if best * _WORST_SHARE >= min(count, wanted) else count


class _Work:
    """The tables and indices that data has chosen so far."""

    def __init__(self, plans: Sequence[_Plan]) -> None:
        self._plans = {plan.weight.value: plan for plan in plans}
        self._made: dict[ir.Value, tuple[Palettes, NDArray[np.uint8]]] = {}

    def round_group(self, group: Group, hessian: Hessian) -> Mapping[str, NDArray[Any]]:
        """Palettize the weights that read one tensor; answers what they now are, in fp32."""
        values = [each for each in dict.fromkeys(linear.weight for linear in group.linears) if each not in self._made]
        return {str(value.name): self._round(self._plans[value], hessian) for value in values}

    def write(self, graph: ir.Graph, plan: _Plan) -> None:
        """Put tables and indices in the weight's place."""
        value = plan.weight.value
        palettes, found = self._made.pop(value, None) or (plan.fit(), None)
        readers = {use.node for use in value.uses()}
        source = write_palettes(graph, value, palettes, next(node for node in graph if node in readers), found)
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, source)
        drop_unused(graph, [value])

    def _round(self, plan: _Plan, hessian: Hessian) -> NDArray[Any]:
        palettes = plan.fit(hessian.mean_square)
        outputs = int(plan.weight.tensor.shape[1])
        nearest = nearest_in(palettes, outputs)
        found = plan.weight.read(lambda array: in_turn(array, hessian, nearest, np.uint8))
        self._made[plan.weight.value] = palettes, found
        return look_up(found, palettes)


def _counts(plans: Sequence[_Plan], how: str) -> list[Step]:
    counts: Counter[tuple[str, str]] = Counter()
    for plan in plans:
        table = plan.weight.table
        what = "Linears" if table is None else "embedding tables" + (" with tied heads" if table.heads else "")
        rounding = how if plan.bits == _BITS else "nearest"
        by = f"{1 << plan.bits} entries for each {plan.channels} channels, {rounding}"
        counts[f"{plan.bits}-bit palettized {what}", by] += len(plan.weight.readers) if table is None else 1
    return [Step("quantize", what, count, by) for (what, by), count in sorted(counts.items())]
