"""Precision by layer: what a recipe names takes another scheme, is stored in float16, or stays in fp32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from glob import escape

import numpy as np
import onnx_ir as ir

from quantize.half_precision import HALF, cast_error
from quantize.linears import EXCLUDED, add_initializer, drop_unused, find_linears
from quantize.matmuls import gemms_to_matmuls
from quantize.nodes import constant, keep_in_fp32, lift_constants, map_tensor, module_path, new_node, unused_name
from quantize.tables import find_tables, tie
from toolkit import plugins
from toolkit.errors import StageError, UsageError
from toolkit.types import Calibration, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["apply_by_layer"]

_OWN, _LEFT, _UNNAMED = "", "excluded", "convolution"
_NAMED = 6


@dataclass(frozen=True, slots=True, eq=False)
class _Unit:
    """What takes one precision: a Linear, or an embedding table with its lookups and tied heads."""

    modules: tuple[str, ...]
    nodes: tuple[ir.Node, ...]

    def matches(self, pattern: str) -> bool:
        return any(fnmatch(module, pattern) for module in self.modules)


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """A scheme and the precisions of the units that it takes."""

    scheme: str
    recipe: QuantConfig
    takes: frozenset[str]


def apply_by_layer(
    model: ir.Model,
    spec: ModelSpec,
    scheme: str,
    calibration: Calibration | None,
    packed: Mapping[str, PackedWeight],
    recipe: QuantConfig,
) -> list[Step]:
    """Apply the scheme to the Linears that are its own, and what `recipe.layers` names to the others, in place.

    `int8` and `int4` beside another scheme are those schemes, applied to the named Linears alone; `fp16` stores a
    weight in float16 behind a Cast, so that the product's precision is the runtime's choice; `fp32` leaves a Linear
    alone and marks it, so that no runtime halves it. A table and the heads tied to it are one.
    Raises UsageError for a pattern that matches no Linear, StageError for a weight that float16 does not hold.
    """
    tied = _in_blocks(spec, recipe)
    chosen = _chosen(model, recipe, tied=tied)
    if not recipe.layers:
        return plugins.scheme(scheme).apply(model, spec, calibration, packed, recipe)
    modules = {module: precision for unit, precision in chosen.items() for module in unit.modules}
    steps: list[Step] = []
    for each in _passes(scheme, recipe, modules):
        left = tuple(escape(module) for module, precision in modules.items() if precision not in each.takes)
        used = replace(each.recipe, exclude=left, layers=(), others={}, convolutions=True)
        done = plugins.scheme(each.scheme).apply(model, spec, calibration, packed, used)
        steps += [step for step in done if step.what != EXCLUDED]
    halves = {module for module, precision in modules.items() if precision == "fp16" != _own(recipe)}
    _store_half(model.graph, halves, tied=tied)
    return [*steps, *_named(chosen, recipe)]


def _chosen(model: ir.Model, recipe: QuantConfig, *, tied: bool) -> dict[_Unit, str]:
    """The precision of every unit, checked; those in fp32 are marked."""
    if not (recipe.layers or recipe.exclude):
        return {}
    lift_constants(model)
    _refuse_unknown(recipe)
    units = _units(model.graph, tied=tied)
    tables = find_tables(model.graph) if recipe.embeddings == "int8" and not tied else []
    _require_matches(units, recipe, [module for table in tables for module in table.modules])
    chosen = {unit: _precision(unit, recipe) for unit in units}
    _refuse_convolutions(chosen)
    for unit, precision in chosen.items():
        for node in unit.nodes if precision == "fp32" else ():
            keep_in_fp32(node)
    return chosen


def _in_blocks(spec: ModelSpec, recipe: QuantConfig) -> bool:
    """Whether the scheme quantizes embedding tables too: weights in blocks or lookup tables, of a language model."""
    blocks = recipe.granularity == "per-block" and recipe.weights in {"int4", "int8"}
    return spec.kind == "decoder" and (blocks or recipe.weights == "palette4")


def _units(graph: ir.Graph, *, tied: bool) -> list[_Unit]:
    if tied:
        gemms_to_matmuls(graph)
        tie(graph)
    tables = find_tables(graph) if tied else []
    heads = {node for table in tables for node in table.heads}
    linears = [linear for linear in find_linears(graph) if linear.node not in heads]
    return [
        *(_Unit((linear.module,), (linear.node,)) for linear in linears),
        *(_Unit(table.modules, (*table.heads, *table.gathers)) for table in tables),
    ]


def _require_matches(units: Sequence[_Unit], recipe: QuantConfig, tables: Sequence[str]) -> None:
    known = list(dict.fromkeys(module for unit in units for module in unit.modules))
    for pattern in (*recipe.exclude, *(pattern for pattern, _ in recipe.layers)):
        if pattern in recipe.exclude and any(fnmatch(name, pattern) for name in tables):
            continue
        if not any(unit.matches(pattern) for unit in units):
            core = pattern.replace("*", "").strip(".")
            tails = {f"*.{'.'.join(name.split('.')[-core.count('.') - 1 :])}": None for name in known}
            listed = ", ".join(known[:_NAMED]) + (f" and {len(known) - _NAMED} more" if len(known) > _NAMED else "")
            raise UsageError(
                f"the pattern '{pattern}' matches no Linear of the model",
                hint=f"{plugins.nearest(pattern, [*known, *tails])}The Linears are {listed}.",
            )


def _precision(unit: _Unit, recipe: QuantConfig) -> str:
    if any(unit.matches(pattern) for pattern in recipe.exclude):
        return _LEFT
    untaken = not recipe.convolutions and any(node.op_type == "Conv" for node in unit.nodes)
    unnamed = _UNNAMED if untaken else _OWN
    return next((precision for pattern, precision in recipe.layers if unit.matches(pattern)), unnamed)


def _refuse_unknown(recipe: QuantConfig) -> None:
    """A precision that nothing here writes would leave its Linears as they are, and say nothing."""
    halves = () if recipe.weights == "bfloat16" else ("fp16",)
    known = dict.fromkeys(("fp32", *halves, *filter(None, [_own(recipe)]), *recipe.others))
    for pattern, precision in recipe.layers:
        if precision not in known:
            raise UsageError(
                f"the recipe gives '{pattern}' {precision}, which cannot stand beside {recipe.weights} weights",
                hint=f"Allowed here: {', '.join(known)}.",
            )


def _refuse_convolutions(chosen: Mapping[_Unit, str]) -> None:
    """Blocks along K are for products of two matrices."""
    for unit, precision in chosen.items():
        if precision == "int4" and any(node.op_type == "Conv" for node in unit.nodes):
            raise UsageError(
                f"module '{unit.modules[0]}' is a convolution, which has no int4",
                hint="Give it int8, fp16 or fp32 by a pattern that comes first: the first match counts.",
            )


def _own(recipe: QuantConfig) -> str:
    """The word for the scheme's own precision; empty where `layers` has none."""
    words = {"int8": "int8", "int4": "int4", "float16": "fp16"}
    return words.get(recipe.weights or "", "")


def _passes(scheme: str, recipe: QuantConfig, modules: Mapping[str, str]) -> Iterator[_Pass]:
    """The schemes in order: int4 last, since it rounds what remains by what it reads behind the others."""
    own = _Pass(scheme, recipe, frozenset({_OWN, _own(recipe)}))
    used = set(modules.values())
    found = [own, *(_Pass(name, each, frozenset({name})) for name, each in recipe.others.items() if name in used)]
    yield from sorted(found, key=lambda each: each.recipe.weights == "int4")


def _store_half(graph: ir.Graph, modules: Iterable[str], *, tied: bool) -> None:
    """Put the weights of those modules that are still fp32 into float16, each behind one Cast for all its readers."""
    wanted = set(modules)
    found = {linear.weight: linear.module for linear in find_linears(graph) if linear.module in wanted}
    tables = find_tables(graph) if tied and wanted else []
    found |= {table.weight: table.modules[0] for table in tables if wanted & set(table.modules)}
    for weight, module in found.items():
        uses = [use for use in weight.uses() if module_path(use.node) in wanted]
        readers = {use.node for use in uses}
        full = _behind_cast(graph, weight, module, next(node for node in graph if node in readers))
        for use in uses:
            use.node.replace_input_with(use.idx, full)
    drop_unused(graph, found)


def _behind_cast(graph: ir.Graph, weight: ir.Value, module: str, first: ir.Node) -> ir.Value:
    tensor = constant(weight)
    if tensor is None:
        raise ValueError(f"weight {weight.name} has no data")
    if lost := map_tensor(tensor, cast_error):
        raise StageError(
            "quantize",
            f"weight '{weight.name}' of module '{module}' {lost} in float16",
            hint="Give the module fp32 or int8 in the recipe's layers.",
        )
    stored = ir.LazyTensor(
        lambda: ir.tensor(map_tensor(tensor, lambda array: array.astype(np.float16))),
        dtype=HALF,
        shape=ir.Shape(tensor.shape),
    )
    half = add_initializer(graph, f"{weight.name}_fp16", stored)
    cast = new_node("Cast", [half], unused_name(graph, f"{weight.name}_fp32"), first, to=int(ir.DataType.FLOAT))
    cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(tensor.shape)
    graph.insert_before(first, cast)
    return cast.outputs[0]


def _named(chosen: Mapping[_Unit, str], recipe: QuantConfig) -> list[Step]:
    """How many Linears took each precision that the recipe names, and which patterns named them."""
    steps = []
    for precision in dict.fromkeys(precision for _, precision in recipe.layers):
        count = sum(each == precision for each in chosen.values())
        patterns = ", ".join(pattern for pattern, each in recipe.layers if each == precision)
        steps.append(Step("quantize", f"Linears named {precision}", count, patterns))
    if recipe.exclude:
        count = sum(each == _LEFT for each in chosen.values())
        steps.append(Step("quantize", EXCLUDED, count, ", ".join(recipe.exclude)))
    return steps
