"""A tensor's values as counts in equal bins of both signs, whose memory does not grow with the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from quantize.clipping import Density, entropy_ends, mse_ends
from toolkit.types import CalibrationMethod

__all__ = ["DEFAULT_PERCENTILE", "Histogram", "Range", "needs_histogram"]

DEFAULT_PERCENTILE = 99.999
_BINS = 4096
"""Bins a side: at least half of them lie below the largest magnitude, as the limit is a power of two."""
_SMALLEST_LIMIT = 2.0**-24
_CHUNK = 1 << 17
"""Values at a time: their integers stay in the cache."""


@dataclass(frozen=True, slots=True)
class Range:
    """The smallest and the largest value that a tensor took."""

    min: float
    max: float

    @property
    def absmax(self) -> float:
        """The largest magnitude."""
        return max(abs(self.min), abs(self.max))

    def union(self, other: Range) -> Range:
        """The range that covers both."""
        return Range(min(self.min, other.min), max(self.max, other.max))


@dataclass(slots=True)
class Histogram:
    """Counts [8191] of x in equal bins over [-limit, limit]; the limit is a power of two and doubles as needed.

    Bin 4095 + k holds what lies from k to k + 1 bins away from 0, on the side of k's sign; the bin of 0 both sides.
    The limit is always the smallest such power above all magnitudes. Doubling merges bins in whole groups, so the
    counts do not depend on the order of the data. Where `weights` [K] is given, a value of channel k (the last axis)
    counts as so many; they are whole numbers from 1 to 65536, so that sums are exact.
    """

    weights: NDArray[np.int64] | None = None
    min: float = math.inf
    max: float = -math.inf
    limit: float = _SMALLEST_LIMIT
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * _BINS - 1, np.int64))

    @property
    def absmax(self) -> float:
        """The largest magnitude seen; 0 before any."""
        return max(abs(self.min), abs(self.max)) if self.counts.any() else 0.0

    @property
    def width(self) -> float:
        """How wide a bin is."""
        return self.limit / _BINS

    def update(self, values: NDArray[Any]) -> None:
        """Add the values of one batch, of any shape. Raises ValueError where one is NaN or Inf."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("NaN" if math.isnan(low) or math.isnan(high) else "Inf")
        self.min, self.max = min(self.min, low), max(self.max, high)
        self._grow(max(abs(low), abs(high)))
        flat, scale = values.reshape(-1), np.float32(1 / self.width)
        weights = None if self.weights is None else np.resize(self.weights, _chunk(self.weights)).astype(np.float64)
        size = _CHUNK if weights is None else weights.size
        for start in range(0, flat.size, size):
            # Cut off towards 0: rounding down would put a value next to 0 into another bin after the limit doubled.
            steps = np.multiply(flat[start : start + size], scale, dtype=np.float32).astype(np.int32)
            steps += _BINS - 1
            found = np.bincount(steps, None if weights is None else weights[: steps.size], self.counts.size)
            self.counts += found.astype(np.int64)

    def percentile(self, percent: float) -> float:
        """The magnitude that `percent` of all values do not exceed: the upper edge of its bin, at most absmax."""
        magnitudes = self._magnitudes()
        total = int(magnitudes.sum())
        rank = max(1, math.ceil(total * percent / 100))
        index = int(np.searchsorted(np.cumsum(magnitudes), rank))
        return min((index + 1) * self.width, self.absmax) if total else 0.0

    def range(self, method: CalibrationMethod, *, symmetric: bool, percent: float = DEFAULT_PERCENTILE) -> Range:
        """What 8 bits are to be spread over; it holds 0, and of the rest nothing that was not seen.

        Symmetric ranges are [-t, t], for int8 with 127 steps a side; others [low, high], for uint8 with 255 steps and
        a zero point. `minmax` keeps all values, `percentile` keeps `percent` of them and cuts as many off at either
        end of [low, high]; `entropy` and `mse` are those of `quantize.clipping`.
        """
        if not self.counts.any():
            return Range(0.0, 0.0)
        if symmetric:
            bound = min(self._magnitude(method, percent), self.absmax)
            return Range(-bound, bound)
        low, high = self._ends(method, percent)
        return Range(min(max(low, self.min), 0.0), max(min(high, self.max), 0.0))

    def _magnitude(self, method: CalibrationMethod, percent: float) -> float:
        if method == "minmax":
            return self.absmax
        if method == "percentile":
            return self.percentile(percent)
        density = Density(self._magnitudes().astype(np.float64), 0)
        return self.width * _searched(method, density, 0.0, self.absmax / self.width)[1]

    def _ends(self, method: CalibrationMethod, percent: float) -> tuple[float, float]:
        if method == "minmax":
            return self.min, self.max
        density = self._density()
        if method == "percentile":
            low, high = _percentiles(density, (100 - percent) / 200)
        else:
            low, high = _searched(method, density, min(self.min, 0.0) / self.width, max(self.max, 0.0) / self.width)
        return low * self.width, high * self.width

    def _magnitudes(self) -> NDArray[np.int64]:
        """Counts of |x|, [4096]."""
        folded = self.counts[_BINS - 1 :].copy()
        folded[1:] += self.counts[: _BINS - 1][::-1]
        return folded

    def _density(self) -> Density:
        """The bin of 0 in two where both signs were seen."""
        negative = 0.0 if self.min >= 0 else 1.0 if self.max <= 0 else 0.5
        around = self.counts[_BINS - 1] * np.array([negative, 1 - negative])
        return Density(np.concatenate([self.counts[: _BINS - 1], around, self.counts[_BINS:]]), _BINS)

    def _grow(self, magnitude: float) -> None:
        if magnitude < self.limit:
            return
        doublings = math.frexp(magnitude / self.limit)[1]
        self.limit *= 2.0**doublings
        away = np.arange(_BINS) >> min(doublings, 62)
        group = _BINS - 1 + np.concatenate([-away[:0:-1], away])
        self.counts = np.bincount(group, weights=self.counts, minlength=self.counts.size).astype(np.int64)


def needs_histogram(method: str) -> TypeGuard[CalibrationMethod]:
    """Whether the method's range is worked out from a histogram; that of `minmax` is known from the two ends alone."""
    return method in get_args(CalibrationMethod) and method != "minmax"


def _chunk(weights: NDArray[np.int64]) -> int:
    """Whole rows of channels, near what is taken at a time."""
    return max(1, _CHUNK // weights.size) * weights.size


def _searched(method: CalibrationMethod, density: Density, low: float, high: float) -> tuple[float, float]:
    return entropy_ends(density) if method == "entropy" else mse_ends(density, low, high)


def _percentiles(density: Density, tail: float) -> tuple[float, float]:
    """The edges, counted in bins from 0, beyond which lies at most that share of the values on either side."""
    below = np.cumsum(density.counts)
    low = int(np.searchsorted(below, below[-1] * tail, side="right"))
    high = int(np.searchsorted(below, below[-1] * (1 - tail)))
    return low - density.zero, high + 1 - density.zero
