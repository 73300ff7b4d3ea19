"""SmoothQuant: outlier channels of an activation move into the weights that read it, where int8 has room for them.

Xiao et al., "SmoothQuant" (2022): X · W = (X / s) · (s · W) for any s > 0 along the channels K; with
s = amax^alpha / wmax^(1-alpha) neither factor keeps a channel that takes most of its int8 range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.arithmetic import channel_absmax
from quantize.calibration import Channels
from quantize.linears import Linear, add_initializer
from quantize.nodes import map_tensor, module_path, new_node, unused_name
from quantize.scaled import note_divided
from quantize.smoothing_fold import Fold, find_fold, rescale
from toolkit.types import Step

__all__ = ["Group", "channel_weights", "choose_smoothing", "divisors_at", "find_groups", "smooth", "worthwhile"]

_LIMIT = 2.0**10
_HEAVIEST = 1 << 16
_FOLDED_GAIN_DB, _MUL_GAIN_DB = 1.0, 2.0
"""Least expected gains that are worth it: less is within the error of the estimate, and a Mul takes time."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """All Linears that read one activation [..., K], which they can only smooth together."""

    activation: ir.Value
    linears: tuple[Linear, ...]

    @property
    def width(self) -> int:
        """K."""
        return self.linears[0].inputs


@dataclass(frozen=True, slots=True)
class _Rows:
    """Of the weights [K, N] of a group, all side by side: each row's largest magnitude and sum of squares, [K]."""

    absmax: Vector
    squares: Vector


def find_groups(linears: Iterable[Linear]) -> list[Group]:
    """The MatMuls and Gemms by the tensor that they read, in graph order; convolutions are in none."""
    readers: dict[ir.Value, list[Linear]] = {}
    for linear in linears:
        transposed = linear.node.op_type == "Gemm" and linear.node.attributes.get_int("transA", 0)
        if linear.node.op_type != "Conv" and not transposed:
            readers.setdefault(linear.activation, []).append(linear)
    return [Group(activation, tuple(found)) for activation, found in readers.items()]


def choose_smoothing(
    groups: Iterable[Group], seen: Mapping[str, Channels], alpha: float
) -> dict[str, NDArray[np.float32]]:
    """The divisors s [K] of every activation, by name, that is expected to gain from them.

    Expected is the noise of rounding activations and weights to int8, each error uniform in its step; one weight
    is read at a time. Channels that never held anything, or that no weight reads, keep s = 1.
    """
    chosen: dict[str, NDArray[np.float32]] = {}
    for group in groups:
        name = str(group.activation.name)
        rows = _rows(group)
        if not np.isfinite(rows.squares).all():
            continue
        divisors = divisors_at(seen[name].absmax, rows.absmax, alpha)
        plain, smoothed = (_noise(group, rows, seen[name], each) for each in (np.ones(group.width), divisors))
        if worthwhile(group, plain, smoothed):
            chosen[name] = divisors
    return chosen


def channel_weights(
    groups: Iterable[Group], divisors: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.int64]]:
    """By the names of activations, how much an error in each channel [K] counts in the products, from 1 to 65536.

    That is the sum of squares of the weights that read the channel, `divisors` being in them by then.
    """
    found = {}
    for group in groups:
        name = str(group.activation.name)
        squares = _rows(group).squares * np.square(divisors.get(name, np.ones(1)), dtype=np.float64)
        largest = squares.max(initial=0.0)
        shares = squares / largest if 0 < largest < np.inf else np.ones(group.width)
        found[name] = np.maximum(np.rint(shares * _HEAVIEST), 1).astype(np.int64)
    return found


def smooth(
    graph: ir.Graph, groups: Iterable[Group], divisors: Mapping[str, NDArray[np.float32]]
) -> tuple[list[Step], dict[str, str]]:
    """Divide activations and multiply weights in place; answers the log, and new names of activations by old ones.

    1/s goes into what makes the activation where that is exact and free, else into one Mul for all its readers.
    """
    counts = {"norm": 0, "value": 0, "mul": 0}
    renamed: dict[str, str] = {}
    left = 0
    for group in groups:
        name = str(group.activation.name)
        if name not in divisors:
            left += 1
            continue
        divisor = divisors[name]
        fold = _fold(group)
        if fold is not None:
            fold.apply(graph, np.reciprocal(divisor))
            _note(graph, fold, group, divisor)
        else:
            renamed[name] = str(_multiply(graph, group, np.reciprocal(divisor)).name)
        counts[fold.kind if fold is not None else "mul"] += 1
        for linear in group.linears:
            rescale(graph, linear.node, 1, divisor, axis=_input_axis(linear))
    return _steps(counts, left), renamed


def _fold(group: Group) -> Fold | None:
    return find_fold(group.activation, group.width, {linear.node for linear in group.linears})


def _note(graph: ir.Graph, fold: Fold, group: Group, divisor: NDArray[np.float32]) -> None:
    note_divided(graph, "in", dict.fromkeys(module_path(linear.node) for linear in group.linears), divisor)
    if fold.kind == "value":
        note_divided(graph, "out", [module_path(fold.places[0][0])], divisor)


def _multiply(graph: ir.Graph, group: Group, factor: NDArray[np.float32]) -> ir.Value:
    source, first = group.activation, group.linears[0].node
    constant = add_initializer(graph, f"{source.name}_smoothing", ir.tensor(factor))
    node = new_node("Mul", [source, constant], unused_name(graph, f"{source.name}_smoothed"), first)
    output = node.outputs[0]
    output.dtype, output.shape = source.dtype, source.shape
    graph.insert_before(first, node)
    for linear in group.linears:
        linear.node.replace_input_with(0, output)
    return output


def worthwhile(group: Group, plain: float, smoothed: float) -> bool:
    """Whether that squared error after smoothing is enough below the one before, also where it takes a Mul."""
    gain = _FOLDED_GAIN_DB if _fold(group) is not None else _MUL_GAIN_DB
    return plain > smoothed * 10 ** (gain / 10)


def divisors_at(amax: Vector, wmax: Vector, alpha: float) -> NDArray[np.float32]:
    """s [K] of that strength, by the largest magnitudes [K] of an activation's channels and of the weights' rows."""
    alive = (amax > 0) & (wmax > 0)
    if not alive.any():
        return np.ones(amax.shape, np.float32)
    # Quiet channels are not made louder: how loud they get on other data is the least known.
    floored = np.maximum(amax, np.median(amax[alive]))
    logs = alpha * np.log(floored) - (1 - alpha) * np.log(np.where(alive, wmax, 1))
    # Only ratios matter: a mean of 1 keeps both factors where fp16 can hold them.
    divisors = np.clip(np.exp(logs - logs[alive].mean()), 1 / _LIMIT, _LIMIT)
    return np.where(alive, divisors, 1).astype(np.float32)


def _noise(group: Group, rows: _Rows, seen: Channels, divisors: NDArray[np.floating]) -> float:
    """Mean squared error of the products of a group, summed over their outputs, up to a constant factor."""
    activation_step = (seen.absmax / divisors).max()
    power = (seen.mean_square / np.square(divisors)).sum()
    weight_steps = sum(_columns(linear, divisors) for linear in group.linears)
    return float(np.square(activation_step) * (rows.squares * np.square(divisors)).sum() + weight_steps * power)


def _columns(linear: Linear, divisors: NDArray[np.floating]) -> float:
    """The sum over outputs of the squared largest magnitude of that output's weights times `divisors`."""
    axis = _input_axis(linear)
    factors = np.expand_dims(divisors.astype(np.float32), 1 - axis)
    return map_tensor(
        linear.tensor, lambda array: float(np.square(np.abs(array * factors).max(axis=axis), dtype=np.float64).sum())
    )


def _rows(group: Group) -> _Rows:
    absmax, squares = np.zeros(group.width), np.zeros(group.width)
    for linear in group.linears:
        found = map_tensor(linear.tensor, partial(_rows_of, axis=linear.axis))
        absmax, squares = np.maximum(absmax, found.absmax), squares + found.squares
    return _Rows(absmax, squares)


def _rows_of(weight: NDArray[Any], axis: int) -> _Rows:
    return _Rows(
        channel_absmax(weight, 1 - axis).astype(np.float64), np.square(weight).sum(axis=axis, dtype=np.float64)
    )


def _input_axis(linear: Linear) -> int:
    return 1 - linear.axis


def _steps(counts: Mapping[str, int], left: int) -> list[Step]:
    total = sum(counts.values())
    detail = (
        f"{counts['norm']} folded into normalisations, {counts['value']} into value projections, "
        f"{counts['mul']} by one Mul each; {left} left alone: nothing to gain"
    )
    return [Step("quantize", "smoothed activations", total, detail)]
