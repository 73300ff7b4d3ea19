"""What each module alone costs in accuracy when it is quantized: one graph with a switch at every Linear.

The graph is the exported one, smoothed as the scheme smooths it, whose weights are inputs and whose activations pass
through their rounding or not, by a flag. One session then measures every module, where a search by real exports would
quantize, lower and build once a module. Noises of single modules add up while they are small, which is what the search
takes them for; whether a mix really holds the gate is measured on its own engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.arithmetic import channel_absmax, dequantize, quantize_weight, symmetric_scale
from quantize.blocks import Grid, block_size_for
from quantize.blocks import dequantize as dequantize_blocks
from quantize.blocks import nearest as nearest_blocks
from quantize.calibration import Channels, feeds, fetch, measure_channels, open_session, weights_folder
from quantize.histogram import Range
from quantize.linears import Linear, add_initializer, drop_unused, find_linears, not_finite_weight
from quantize.matmuls import last_linears
from quantize.nodes import lift_constants, new_node
from quantize.smoothing import find_groups, smooth
from quantize.static import choose_divisors, scale_and_zero
from quantize.token_ranges import token_q_dq
from toolkit.drift.metrics import moments
from toolkit.drift.padding import at_attended

if TYPE_CHECKING:
    from toolkit.types import Calibration, ExportedGraph, QuantConfig, Tensors

__all__ = ["ModuleNoise", "module_noises", "rounded_weight"]

_BATCHES = 4
"""Batches of calibration data that modules are ranked on: each is run once a module."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ModuleNoise:
    """One module: the noise that it adds, and what it weighs.

    `noise` is Σ|y - y'|² / Σ|y|² of the model's worst output, where this module alone is quantized; `weights` are its
    parameters, `products` its multiply-adds over the measured rows.
    """

    module: str
    noise: float
    weights: int
    products: int


@dataclass(frozen=True, slots=True, eq=False)
class _Switched:
    """One Linear whose weight is the input `weight`, and whose activation is rounded where `flag` is fed True."""

    linear: Linear
    weight: str
    flag: str
    plain: Array
    rounded: Array | None
    rows: int


def module_noises(exported: ExportedGraph, recipe: QuantConfig, calibration: Calibration) -> list[ModuleNoise]:
    """The noise of every module that the recipe quantizes, in graph order.

    For int8 weights by channel, whatever the ranges of activations, and for 4- and 8-bit weights in blocks, rounded to
    the nearest.
    Raises StageError where a weight or an activation is not finite.
    """
    model = ir.load(exported.path)
    lift_constants(model)
    switched = _switched(model, recipe, calibration)
    session = open_session(ir.to_proto(model), weights_folder(model))
    fed = {value.name for value in session.get_inputs()} - {each.weight for each in switched}
    fed -= {each.flag for each in switched}
    batches = list(islice(feeds(calibration, fed), _BATCHES))
    outputs = [tensor.name for tensor in exported.spec.outputs]

    def run(chosen: Sequence[_Switched]) -> list[Tensors]:
        switches = _switches(switched, chosen)
        answers = [fetch(session, outputs, {**batch, **switches}, place) for place, batch in enumerate(batches)]
        return at_attended(answers, batches, exported.spec)

    reference = run([])
    modules: dict[str, list[_Switched]] = {}
    for each in switched:
        if each.rounded is not None:
            modules.setdefault(each.linear.module, []).append(each)
    return [
        ModuleNoise(
            module,
            _noise(reference, run(own)),
            sum(each.plain.size for each in own),
            sum(each.plain.size * each.rows for each in own),
        )
        for module, own in modules.items()
    ]


def rounded_weight(weight: Array, axis: int, recipe: QuantConfig) -> Array | None:
    """The float32 weight that the recipe's integers stand for, rounded to the nearest; None where it takes none.

    `axis` is that of the output channels. Raises ValueError where the weight holds NaN or Inf.
    """
    if recipe.granularity != "per-block":
        scale = symmetric_scale(channel_absmax(weight, axis))
        return dequantize(quantize_weight(weight, scale, axis), scale, axis)
    inputs = 1 - axis
    size = block_size_for(weight.shape[inputs], recipe.block_size or 32) if weight.ndim == 2 else None
    if size is None:
        return None
    grid = Grid(4 if recipe.weights == "int4" else 8, size, recipe.symmetric)
    return dequantize_blocks(*nearest_blocks(weight, grid, inputs), inputs)


def _switched(model: ir.Model, recipe: QuantConfig, calibration: Calibration) -> list[_Switched]:
    """Smooth the graph, and give every Linear its switch."""
    found = find_linears(model.graph, convolutions=recipe.convolutions)
    groups = find_groups(found)
    widths = dict.fromkeys((linear.activation for linear in found), 1) | {
        group.activation: group.width for group in groups
    }
    seen = measure_channels(model, widths, calibration)
    divisors = choose_divisors(model, groups, seen, recipe, calibration)
    _, renamed = smooth(model.graph, groups, divisors) if divisors else ([], {})
    held = {renamed.get(name, name): (each, divisors.get(name)) for name, each in seen.items()}
    most = max((each.rows for each in seen.values()), default=1)
    linears = find_linears(model.graph, convolutions=recipe.convolutions)
    last = last_linears(model.graph, linears)
    # Weights in blocks: the last Linear before an output takes 8 bits.
    recipes = [replace(recipe, weights="int8") if linear.node in last else recipe for linear in linears]
    made = [
        _switch(model.graph, place, linear, own, held, most)
        for place, (linear, own) in enumerate(zip(linears, recipes, strict=True))
    ]
    drop_unused(model.graph, [each.linear.weight for each in made])
    return made


def _switch(
    graph: ir.Graph,
    place: int,
    linear: Linear,
    recipe: QuantConfig,
    held: Mapping[str, tuple[Channels, Array | None]],
    most: int,
) -> _Switched:
    tensor = linear.weight.const_value
    if tensor is None:
        raise ValueError(f"weight {linear.weight.name} has no data")
    plain = tensor.numpy()
    try:
        rounded = rounded_weight(plain, linear.axis, recipe)
    except ValueError as error:
        raise not_finite_weight(linear) from error
    weight = _input(graph, f"tune.weight.{place}", ir.DataType.FLOAT, plain.shape)
    flag = _input(graph, f"tune.flag.{place}", ir.DataType.BOOL, ())
    linear.node.replace_input_with(1, weight)
    seen, divisor = held[str(linear.activation.name)]
    _round_activation(graph, place, linear, flag, recipe, seen.range(1 if divisor is None else divisor))
    # A convolution's rows are not its activation's: it has about as many as the Linears behind it.
    rows = most if linear.node.op_type == "Conv" else seen.rows
    return _Switched(linear, str(weight.name), str(flag.name), plain, rounded, rows)


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value


def _round_activation(
    graph: ir.Graph, place: int, linear: Linear, flag: ir.Value, recipe: QuantConfig, bound: Range
) -> None:
    """Put the activation's rounding behind the flag; where activations stay as they are the flag is read by nobody."""
    if recipe.activations is None:
        return
    source, name = linear.activation, f"tune.activation.{place}"
    if recipe.ranges == "per-token" and linear.node.op_type != "Conv":
        *made, restore = token_q_dq(graph, linear)
    elif recipe.calibration == "none":
        measure = ir.node("DynamicQuantizeLinear", inputs=[source], num_outputs=3, name=f"{name}.measure")
        for output, kind in zip(measure.outputs, ("quantized", "scale", "zero"), strict=True):
            output.name = f"{name}.{kind}"
        made, restore = [measure], _restored(measure.outputs, name, linear)
    else:
        tensors = zip(("scale", "zero"), scale_and_zero(bound, recipe.activations), strict=True)
        scale, zero = (add_initializer(graph, f"{name}.{what}", tensor) for what, tensor in tensors)
        node = new_node("QuantizeLinear", [source, scale, zero], f"{name}.quantized", linear.node)
        made, restore = [node], _restored([node.outputs[0], scale, zero], name, linear)
    choose = new_node("Where", [flag, restore.outputs[0], source], f"{name}.chosen", linear.node)
    graph.insert_before(linear.node, [*made, restore, choose])
    linear.node.replace_input_with(0, choose.outputs[0])


def _restored(quantized: Sequence[ir.Value], name: str, linear: Linear) -> ir.Node:
    return new_node("DequantizeLinear", list(quantized), f"{name}.restored", linear.node)


def _switches(switched: Sequence[_Switched], chosen: Sequence[_Switched]) -> dict[str, Array]:
    on = {id(each) for each in chosen}
    weights = {
        each.weight: each.rounded if id(each) in on and each.rounded is not None else each.plain for each in switched
    }
    return weights | {each.flag: np.array(id(each) in on) for each in switched}


def _noise(reference: Sequence[Tensors], candidate: Sequence[Tensors]) -> float:
    """The largest over the outputs of noise over signal, both summed over the batches."""
    shares = []
    for name in reference[0]:
        parts = [moments(left[name], right[name]) for left, right in zip(reference, candidate, strict=True)]
        signal, noise = sum(part.signal for part in parts), sum(part.noise for part in parts)
        shares.append(noise / signal if signal else float(noise > 0))
    return max(shares)
