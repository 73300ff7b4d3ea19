"""Lookup tables for weights: k-means of their values, one table for a group of output channels.

The best table of a sorted row is a cut of it into stretches, each answered by its mean. Which cuts between some
hundreds of parts are best is found exactly, by dynamic programming over prefix sums (Wang and Song, "Ckmeans.1d.dp",
2011); Lloyd's steps then move the cuts by single weights. Entries are rounded to float16, which is what devices hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Palettes", "codes", "fit", "look_up", "nearest_in"]

_BINS = 256
_ROUNDS = 50
_HALF = float(np.finfo(np.float16).max)

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Palettes:
    """`tables` float32 [groups, entries], ascending, of a weight whose output channels lie along `axis` of its two.

    Group g has the channels from g · (channels / groups) on.
    """

    tables: Float
    axis: int

    @property
    def entries(self) -> int:
        """How many values a weight can take."""
        return int(self.tables.shape[1])

    @property
    def bits(self) -> int:
        """What an index takes."""
        return (self.entries - 1).bit_length()


def fit(
    weight: NDArray[Any], bits: int, channels: int, axis: int, importance: NDArray[np.float32] | None = None
) -> Palettes:
    """The tables of a 2-D weight, one for each `channels` output channels, which divide their number.

    `importance` [inputs] weighs the squared error of each input channel.
    Raises ValueError where a weight is NaN, Inf or beyond float16.
    """
    by_channel = np.moveaxis(np.asarray(weight, np.float32), axis, 0)
    tables = [_means(values, weights, 1 << bits) for values, weights in _groups(by_channel, channels, importance)]
    return Palettes(np.stack(tables), axis)


def codes(weight: NDArray[Any], palettes: Palettes) -> NDArray[np.uint8]:
    """The index of the nearest entry for each weight, shaped as the weight."""
    by_channel = np.moveaxis(np.asarray(weight, np.float32), palettes.axis, 0)
    made = np.empty(by_channel.shape, np.uint8)
    size = len(by_channel) // len(palettes.tables)
    for group, table in enumerate(palettes.tables):
        rows = slice(group * size, (group + 1) * size)
        made[rows] = np.searchsorted(_between(table), by_channel[rows])
    return np.ascontiguousarray(np.moveaxis(made, 0, palettes.axis))


def look_up(indices: NDArray[np.uint8], palettes: Palettes) -> Float:
    """The weights that the indices stand for."""
    shape = [1, 1]
    shape[palettes.axis] = -1
    group = np.arange(indices.shape[palettes.axis]) // (indices.shape[palettes.axis] // len(palettes.tables))
    found: Float = palettes.tables[group.reshape(shape), indices]
    return found


def nearest_in(palettes: Palettes, outputs: int) -> Callable[[int, Float], tuple[NDArray[np.uint8], Float]]:
    """What finds the nearest entries of one input channel's weights [outputs], as `quantize.gptq.in_turn` takes it."""
    group = np.arange(outputs) // (outputs // len(palettes.tables))
    tables, places = palettes.tables[group], np.arange(outputs)
    cuts = np.ascontiguousarray(((tables[:, 1:] + tables[:, :-1]) / 2).T)

    def nearest(channel: int, values: Float) -> tuple[NDArray[np.uint8], Float]:
        indices = (values > cuts).sum(axis=0, dtype=np.uint8)
        return indices, tables[places, indices]

    return nearest


def _groups(
    by_channel: Float, channels: int, importance: NDArray[np.float32] | None
) -> Iterator[tuple[Float, NDArray[np.float64]]]:
    """Each group's weights, sorted, and what each one's error counts."""
    for start in range(0, len(by_channel), channels):
        values = by_channel[start : start + channels]
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > _HALF:
            raise ValueError("NaN, Inf or beyond float16")
        order = np.argsort(values, axis=None)
        weights = np.ones(1) if importance is None else np.asarray(importance, np.float64)
        yield values.reshape(-1)[order], np.broadcast_to(weights, values.shape).reshape(-1)[order]


def _means(values: Float, weights: NDArray[np.float64], entries: int) -> Float:
    """The best table found for sorted values, as float32 that float16 holds, ascending."""
    sums = _Sums(values, weights)
    cuts = _best_cuts(values, sums, entries) if entries * 4 <= _BINS else _spread_cuts(values, entries)
    table = sums.means(cuts, np.zeros(entries))
    for _ in range(_ROUNDS):
        moved = np.concatenate([[0], np.searchsorted(values, _between(table)), [len(values)]])
        if (moved == cuts).all():
            break
        cuts, table = moved, sums.means(moved, table)
    return np.sort(table.astype(np.float16).astype(np.float32))


class _Sums:
    """Sums over any stretch of a sorted row, from what was added up once."""

    def __init__(self, values: Float, weights: NDArray[np.float64]) -> None:
        wide = values.astype(np.float64)
        self._parts = [
            np.concatenate([[0.0], np.cumsum(part)]) for part in (weights, weights * wide, weights * wide * wide)
        ]

    def means(self, cuts: NDArray[np.int64], otherwise: NDArray[np.floating]) -> NDArray[np.float64]:
        """The mean of each stretch between cuts; an empty one keeps what it had."""
        weight, first = (np.diff(part[cuts]) for part in self._parts[:2])
        return np.divide(first, weight, out=np.array(otherwise, np.float64), where=weight > 0)

    def errors(self, bounds: NDArray[np.int64]) -> NDArray[np.float64]:
        """[i, j]: the squared error of all between bounds i and j answered by their mean; infinite for j below i."""
        weight, first, second = (part[bounds][None, :] - part[bounds][:, None] for part in self._parts)
        saved = np.divide(np.square(first), weight, out=np.zeros_like(first), where=weight > 0)
        return np.where(
            np.arange(len(bounds))[:, None] <= np.arange(len(bounds)), np.maximum(second - saved, 0), np.inf
        )


def _best_cuts(values: Float, sums: _Sums, entries: int) -> NDArray[np.int64]:
    """Where to cut into `entries` stretches, [entries + 1], among bounds of equal parts and of equal widths.

    Parts of equal count are fine where values are dense, those of equal width in the tails, whose errors are large.
    """
    parts = np.linspace(0, len(values), _BINS // 2 + 1).round().astype(np.int64)
    widths = np.searchsorted(values, np.linspace(values[0], values[-1], _BINS // 2 + 1)[1:-1])
    bounds = np.unique(np.concatenate([parts, widths]))
    errors = sums.errors(bounds)
    least, chosen = errors[0], []
    for _ in range(entries - 1):
        whole = least[:, None] + errors
        chosen.append(whole.argmin(axis=0))
        least = whole.min(axis=0)
    places = [len(bounds) - 1]
    for back in reversed(chosen):
        places.append(int(back[places[-1]]))
    return bounds[[0, *places[::-1]]]


def _spread_cuts(values: Float, entries: int) -> NDArray[np.int64]:
    """Cuts as dense as the cube root of how dense the values are, which is best for many entries (Panter and Dite)."""
    counts, edges = np.histogram(values, bins=8 * entries)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    inner = np.interp(np.arange(1, entries) * share[-1] / entries, share, edges)
    return np.concatenate([[0], np.searchsorted(values, inner), [len(values)]])


def _between(table: NDArray[np.floating]) -> NDArray[np.floating]:
    """Where one entry stops being the nearest and the next begins."""
    return (table[1:] + table[:-1]) / 2
