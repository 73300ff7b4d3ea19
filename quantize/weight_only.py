"""Weight-only quantization: plan, round, write, and say what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from quantize.block_nodes import Offsets, Rounded, dequantize_node
from quantize.linears import Linear, add_initializer, drop_unused, excluded_step, find_linears, split_excluded
from quantize.matmuls import gemms_to_matmuls, last_linears
from quantize.nodes import lift_constants, module_path
from quantize.rounding import round_by_data, round_nearest
from quantize.sensitivity import promote
from quantize.table_nodes import write_table
from quantize.tables import Table, find_tables, matches, tie
from quantize.weights import Weight, plan_linears, plan_tables
from toolkit.types import Calibration, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["Parts", "find_parts", "quantize_weights"]

_NAMED = 6
_NO_BLOCK = "no allowed block size divides the inputs of "


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a weight-only scheme quantizes: Linears but for `excluded`, and a decoder's embedding tables."""

    linears: list[Linear]
    excluded: list[Linear]
    tables: list[Table]


def find_parts(model: ir.Model, spec: ModelSpec, exclude: tuple[str, ...]) -> Parts:
    """The parts, each Linear written as MatMul, and heads tied to the table whose copy they hold.

    A table is left out where a pattern matches the module of a lookup or of a tied head.
    """
    lift_constants(model)
    graph = model.graph
    gemms_to_matmuls(graph)
    tables: list[Table] = []
    if spec.kind == "decoder":
        tie(graph)
        tables = find_tables(graph)
    heads = {node for table in tables for node in table.heads}
    found = [each for each in find_linears(graph) if each.node.op_type == "MatMul" and each.node not in heads]
    linears, excluded = split_excluded(found, exclude)
    return Parts(linears, excluded, [table for table in tables if not matches(table, exclude)])


def quantize_weights(
    model: ir.Model,
    spec: ModelSpec,
    recipe: QuantConfig,
    calibration: Calibration | None,
    packed: Mapping[str, PackedWeight],
    *,
    max_kl: float | None = None,
) -> list[Step]:
    """Put the weights of all Linears, and a decoder's embedding tables, on block grids, in place.

    Weights that the source's file had packed in no more bits are written as they were. The others are rounded as
    `recipe.rounding` says, to the nearest where there is no calibration data. With `max_kl`, the weights that move a
    decoder's next-token distribution most take 8 bits until the rest is expected to stay below it.
    Raises StageError where a weight or an activation is NaN or Inf, or a packed weight is not the graph's.
    """
    graph, parts = model.graph, find_parts(model, spec, recipe.exclude)
    weights = plan_linears(parts.linears, recipe, last_linears(graph, parts.linears), packed)
    weights += plan_tables(parts.tables, recipe, packed)
    steps = excluded_step(parts.excluded, recipe.exclude)
    by_data = _to_round_by_data(weights, recipe) if calibration is not None else []
    made: dict[Weight, Rounded] = {}
    if by_data and calibration is not None:
        if max_kl is not None and spec.kind == "decoder":
            steps += promote(model, by_data, calibration, max_kl)
        made, folded = round_by_data(model, by_data, calibration, scale_inputs=recipe.rounding == "awq")
        steps.append(_data_step(recipe, made, folded, calibration))
    for weight in weights:
        if weight not in made and weight.grid is not None:
            made[weight] = round_nearest(weight, refined=recipe.rounding == "hqq")
    _write(graph, made)
    return [*_counts(weights, recipe, set(by_data), calibration is None), *steps]


def _to_round_by_data(weights: Sequence[Weight], recipe: QuantConfig) -> list[Weight]:
    if recipe.rounding not in {"gptq", "awq"}:
        return []
    mine = [weight for weight in weights if weight.table is None and weight.packed is None]
    return [weight for weight in mine if weight.grid is not None and weight.grid.bits == 4]


def _write(graph: ir.Graph, made: Mapping[Weight, Rounded]) -> None:
    offsets = Offsets(graph)
    for weight, each in made.items():
        if weight.table is not None:
            write_table(graph, weight.table, each, offsets)
        else:
            _write_linear(graph, weight, each, offsets)
    if offsets.used:
        graph.sort()


def _write_linear(graph: ir.Graph, weight: Weight, made: Rounded, offsets: Offsets) -> None:
    source = dequantize_node(graph, weight.value, made, weight.readers[0])
    offset = add_initializer(graph, f"{weight.value.name}_offset", made.offset) if made.offset is not None else None
    for node in weight.readers:
        node.replace_input_with(1, source)
        if offset is not None:
            offsets.add(node, offset, made.grid.block_size)
    drop_unused(graph, [weight.value])


def _data_step(recipe: QuantConfig, made: Mapping[Weight, Rounded], folded: int, calibration: Calibration) -> Step:
    how = f"{folded} normalisations took factors" if recipe.rounding == "awq" else "sequential, by activation order"
    count = sum(each.grid.bits == 4 for each in made.values())
    return Step(
        "quantize", f"{recipe.rounding} weights", count, f"{how}; {calibration.count} from {calibration.source}"
    )


def _counts(weights: Sequence[Weight], recipe: QuantConfig, by_data: set[Weight], lost: bool) -> list[Step]:
    counts: Counter[tuple[str, str]] = Counter()
    left: list[str] = []
    for weight in weights:
        count = len(weight.readers) if weight.table is None else 1
        if weight.grid is None:
            left.append(module_path(weight.readers[0]))
        else:
            counts[_what(weight), _how(weight, recipe, weight in by_data, lost)] += count
    steps = [Step("quantize", what, count, how) for (what, how), count in sorted(counts.items())]
    if left:
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        steps.append(Step("quantize", "kept in fp32: no block", len(left), _NO_BLOCK + ", ".join(left[:_NAMED]) + more))
    return steps


def _what(weight: Weight) -> str:
    dtype = weight.grid.dtype if weight.grid is not None else "float32"
    if weight.table is None:
        return f"{dtype} Linears"
    return f"{dtype} embedding tables" + (" with tied heads" if weight.table.heads else "")


def _how(weight: Weight, recipe: QuantConfig, by_data: bool, lost: bool) -> str:
    block = f"block {weight.grid.block_size}" if weight.grid is not None else ""
    if weight.packed is not None:
        return f"{block}, carried over exactly"
    if weight.grid is not None and weight.grid.bits == 4:
        if by_data or recipe.rounding == "hqq":
            return f"{block}, {recipe.rounding}"
        return f"{block}, nearest" + (": no calibration data" if lost and recipe.rounding != "nearest" else "")
    return f"{block}, nearest"
