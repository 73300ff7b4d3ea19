"""Which values 8 bits are spread over, and which are cut off: chosen from the counts of a histogram.

Both methods take the values of a bin as spread evenly in it. Ends are counted in bins from 0. Where both ends can move,
one is searched with the other held, in turn, until neither moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Density", "entropy_ends", "mse_ends"]

_STEPS = 255
"""Of uint8; int8 has 127 for magnitudes."""
_CANDIDATES = 512
_OCTAVES, _PER_OCTAVE = 10, 16
"""Bounds that are tried for `mse`: as close as the 16th root of 2, down to a thousandth of the largest magnitude."""
_TURNS = 8
_LEAST = 1e-12

Array = NDArray[Any]
Score = Callable[[Array, Array], Array]


@dataclass(frozen=True, slots=True, eq=False)
class Density:
    """Counts [n] in bins of width 1, of which those before the index `zero` lie below 0."""

    counts: NDArray[np.float64]
    zero: int

    @property
    def steps(self) -> int:
        """How many steps 8 bits have for it: those of magnitudes, or those of both signs."""
        return _STEPS if self.zero else _STEPS // 2


def mse_ends(density: Density, low: float, high: float) -> tuple[float, float]:
    """The range within [low, high] whose grid of 8 bits leaves the least expected squared error.

    A value costs the square of its distance to the nearest number of the grid: rounding within the range, clipping
    outside. The grid holds 0. Of a magnitude's density `low` is 0, and the grid is that of int8.
    """
    moments = _Moments(density)
    factors = 2.0 ** (-np.arange(_OCTAVES * _PER_OCTAVE + 1) / _PER_OCTAVE)
    lows, highs = (np.append(end * factors, 0.0) if end else np.zeros(1) for end in (low, high))
    return _search(moments.errors, lows, highs)


def entropy_ends(density: Density) -> tuple[float, float]:
    """The range whose histogram loses the least information when it is written in 8 bits (Kullback-Leibler divergence).

    The arithmetic is that of Migacz, "8-bit Inference with TensorRT" (GTC 2017): the reference P has what lies outside
    added to its last bin; Q gives the bins of a step that hold something the mean of them. What is next to 0 counts as
    its neighbour does, as in NVIDIA's pytorch-quantization: zeros of a ReLU are exact in any range. Two-sided, P has
    an end at either side. A range ends on a bin that holds something, and has at least as many bins as numbers.
    """
    table = _Divergence(density)
    first, last = table.held[0], table.held[-1] + 1
    lows = _thinned(table.held[table.held < density.zero]) if first < density.zero else np.array([density.zero])
    highs = _thinned(table.held[table.held >= density.zero] + 1) if last > density.zero else np.array([density.zero])
    low, high = _search(table.divergences, lows, highs[::-1])
    return low - density.zero, high - density.zero


def _search(score: Score, lows: Array, highs: Array) -> tuple[float, float]:
    """The best pair of ends, each list beginning with the widest; of equals the widest stays."""
    low, high = lows[0], highs[0]
    for _ in range(_TURNS):
        before = low, high
        high = highs[np.argmin(score(np.full(highs.shape, low), highs))]
        low = lows[np.argmin(score(lows, np.full(lows.shape, high)))]
        if (low, high) == before or len(lows) == 1:
            break
    return float(low), float(high)


def _thinned(candidates: Array) -> Array:
    """At most 512 of them, ends among them."""
    picked = np.linspace(0, len(candidates) - 1, min(len(candidates), _CANDIDATES))
    return candidates[picked.astype(np.intp)]


class _Moments:
    """Counts, sums and sums of squares of all values below any point."""

    def __init__(self, density: Density) -> None:
        self._zero, self._steps = density.zero, density.steps
        self._counts = np.append(density.counts, 0.0)
        self._left = np.arange(len(self._counts)) - float(density.zero)
        self._below = _before(density.counts)
        self._sums = _before(density.counts * (self._left[:-1] + 0.5))
        self._squares = float(np.sum(density.counts * (self._left[:-1] ** 2 + self._left[:-1] + 1 / 3)))

    def errors(self, lows: Array, highs: Array) -> Array:
        """The expected sum of squared errors for each pair of ends [n]; between equal ends lies 0 alone."""
        step = np.maximum(highs - lows, _LEAST)[:, None] / self._steps
        numbers = np.rint(lows[:, None] / step) + np.arange(self._steps + 1)
        counts, sums = (np.diff(each) for each in self._up_to((numbers[:, :-1] + 0.5) * step))
        held = numbers * step
        found: Array = self._squares + np.sum(held * (held * counts - 2 * sums), axis=1)
        return found

    def _up_to(self, points: Array) -> tuple[Array, Array]:
        """How many values lie below each point, and their sum, with all and nothing at the ends [n, numbers + 1]."""
        places = np.clip(points + self._zero, 0, len(self._counts) - 1)
        index = places.astype(np.intp)
        part = places - index
        inside = self._counts[index] * part
        counts = self._below[index] + inside
        sums = self._sums[index] + inside * (self._left[index] + part / 2)
        none = np.zeros((len(points), 1))
        every, whole = none + self._below[-1], none + self._sums[-1]
        return np.hstack([none, counts, every]), np.hstack([none, sums, whole])


class _Divergence:
    """What the histogram and its 8-bit form have in common, for any slice of it."""

    def __init__(self, density: Density) -> None:
        self._counts, self._levels = _without_zero(density), density.steps + 1
        self.held = np.flatnonzero(density.counts)
        self._below = _before(self._counts)
        self._occupied = _before(self._counts > 0)
        self._information = _before(_log_weighted(self._counts))

    def divergences(self, starts: Array, stops: Array) -> Array:
        """KL(P || Q) [n] of the slices; infinite where a slice is too short, or an end takes values but held none."""
        edges = starts[:, None] - (-np.arange(self._levels + 1) * (stops - starts)[:, None] // self._levels)
        held, occupied = (np.diff(each[edges]) for each in (self._below, self._occupied))
        inside = np.maximum(self._below[stops] - self._below[starts], 1e-300)
        total, tails = self._below[-1], (self._below[starts], self._below[-1] - self._below[stops])
        expected = np.log(np.where(held > 0, held, 1) / np.maximum(occupied, 1)) - np.log(inside)[:, None]
        crossed = np.sum(held * expected, axis=1) + tails[0] * expected[:, 0] + tails[1] * expected[:, -1]
        own = self._information[stops] - self._information[starts]
        lost = np.zeros(len(starts), bool)
        for tail, end in zip(tails, (starts, stops - 1), strict=True):
            count = self._counts[end]
            own = own + _log_weighted(count + tail) - _log_weighted(count)
            lost |= (tail > 0) & (count == 0)
        found = (own - crossed) / max(total, 1.0) - np.log(max(total, 1.0))
        return np.where(lost | (stops - starts < self._levels), np.inf, found)


def _without_zero(density: Density) -> Array:
    """The counts, those next to 0 as their neighbours' further out."""
    counts = density.counts.copy()
    counts[density.zero] = counts[density.zero + 1]
    if density.zero:
        counts[density.zero - 1] = counts[density.zero - 2]
    return counts


def _before(values: Array) -> Array:
    """Running sums [n + 1] from 0."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _log_weighted(counts: Array) -> Array:
    return counts * np.log(np.where(counts > 0, counts, 1.0))
