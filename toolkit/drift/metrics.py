"""The arithmetic of drift. Sums run in float64 over chunks, so a large output is never held a second time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError

__all__ = [
    "Moments",
    "accuracy",
    "cosine",
    "defect",
    "failure",
    "max_abs",
    "moments",
    "overlap_at_k",
    "relative_l2",
    "sqnr_db",
    "top1_agreement",
]

Array = NDArray[Any]
Chunk = NDArray[np.float64]

_CHUNK = 1 << 16
_ROWS = 256
# A square of this still sums to a finite float64, and no sound model output comes near it.
_LARGEST = 1e100


@dataclass(frozen=True, slots=True)
class Moments:
    """What one pass over reference r and candidate c leaves behind; every metric follows from it.

    `signal` is Σr², `power` Σc², `product` Σrc, `noise` Σ(r-c)², and `peak` the largest |r-c|.
    """

    signal: float = 0.0
    power: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    peak: float = 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio in dB; see the function of that name."""
        if self.peak == 0:
            return math.inf
        if self.signal == 0:
            return -math.inf
        return math.inf if self.noise == 0 else 10 * (math.log10(self.signal) - math.log10(self.noise))

    @property
    def cosine(self) -> float:
        """Cosine similarity in [-1, 1]; see the function of that name."""
        if self.peak == 0:
            return 1.0
        if self.signal == 0 or self.power == 0:
            return 0.0
        return min(1.0, max(-1.0, self.product / (math.sqrt(self.signal) * math.sqrt(self.power))))

    @property
    def relative_l2(self) -> float:
        """Norm of the error over the norm of the reference; see the function of that name."""
        if self.peak == 0:
            return 0.0
        return math.inf if self.signal == 0 else math.sqrt(self.noise) / math.sqrt(self.signal)


def moments(reference: Array, candidate: Array) -> Moments:
    """Sum both arrays, of one shape and any real dtype, in a single chunked pass.

    Raises UsageError when the shapes differ, or when a value is NaN, Inf or above 1e100 in magnitude.
    """
    reason = failure(reference, candidate)
    if reason:
        raise UsageError(f"cannot compare: {reason}")
    total = Moments()
    for left, right in _pairs(reference, candidate):
        total = _add(total, left, right)
    return total


def failure(reference: Array | None, candidate: Array | None) -> str:
    """Why the two cannot be compared, as half a sentence (missing, shape, NaN or Inf); empty if they can."""
    if reference is None:
        return "is missing from the reference"
    if candidate is not None and candidate.shape == reference.shape:
        broken = _broken_words(reference, "of the reference ")
        if broken:
            return broken
    return defect(candidate, reference.shape)


def defect(array: Array | None, shape: tuple[int, ...]) -> str:
    """Why an array cannot be compared with a reference of that shape, as half a sentence; empty if it can."""
    if array is None:
        return "is missing"
    if array.shape != shape:
        return f"has shape {_spelled(array.shape)}, the reference has {_spelled(shape)}"
    return _broken_words(array)


def sqnr_db(reference: Array, candidate: Array) -> float:
    """Signal-to-quantization-noise ratio, 10·log10(Σr² / Σ(r-c)²), in dB over all elements; higher is closer.

    The standard definition of quantizer design (Jayant & Noll, Digital Coding of Waveforms, 1984).
    Equal arrays give +inf, also when all zero or empty; an all-zero reference that was not met gives -inf.
    """
    return moments(reference, candidate).sqnr_db


def cosine(reference: Array, candidate: Array) -> float:
    """Cosine of the angle between the flattened arrays, Σrc / (‖r‖·‖c‖), in [-1, 1]; blind to scale.

    Equal arrays give exactly 1, also when all zero or empty; if only one of them is all zero, 0.
    """
    return moments(reference, candidate).cosine


def relative_l2(reference: Array, candidate: Array) -> float:
    """Norm of the error over the norm of the reference, ‖r-c‖ / ‖r‖: the SQNR without the logarithm.

    Equal arrays give 0, also when all zero or empty; an all-zero reference that was not met gives +inf.
    """
    return moments(reference, candidate).relative_l2


def max_abs(reference: Array, candidate: Array) -> float:
    """The largest |r - c| of any element, in the output's own unit; 0 for empty arrays."""
    return moments(reference, candidate).peak


def top1_agreement(reference: Array, candidate: Array) -> float:
    """The fraction of rows whose largest score sits at the same index, for scores [..., classes].

    On a tie the lower index wins, in both. Raises UsageError where there are no rows or the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise UsageError(f"top-1 agreement needs one shape, got {_shape(reference)} and {_shape(candidate)}")
    _require_rows(reference.size, "top-1 agreement")
    return float(np.mean(np.argmax(reference, axis=-1) == np.argmax(candidate, axis=-1)))


def accuracy(scores: Array, labels: NDArray[np.int64]) -> float:
    """How many of `scores` [n, classes] have their largest value at `labels` [n], in per cent.

    Raises UsageError when the counts differ or are zero.
    """
    if scores.ndim != 2 or labels.shape != (len(scores),):
        raise UsageError(
            f"accuracy needs scores [n, classes] and labels [n], got {_shape(scores)} and {_shape(labels)}"
        )
    _require_rows(scores.size, "accuracy")
    return 100 * float(np.mean(np.argmax(scores, axis=-1) == labels))


def overlap_at_k(reference: Array, candidate: Array, k: int = 10) -> float:
    """The mean share of a row's k nearest other rows common to reference [n, d] and candidate [n, e].

    Nearness is cosine, ties go to the lower index; with fewer than k other rows, all of them are taken.
    Memory is O(n · 256), not O(n²). Raises UsageError where the counts differ or there are under two rows.
    """
    if reference.ndim != 2 or candidate.ndim != 2 or len(reference) != len(candidate):
        raise UsageError(f"overlap needs two [rows, width] arrays, got {_shape(reference)} and {_shape(candidate)}")
    rows, depth = len(reference), min(k, len(reference) - 1)
    _require_rows(depth, "overlap")
    left, right = _unit_rows(reference), _unit_rows(candidate)
    shared = sum(
        np.intersect1d(a, b, assume_unique=True).size
        for start in range(0, rows, _ROWS)
        for a, b in zip(_neighbours(left, start, depth), _neighbours(right, start, depth), strict=True)
    )
    return shared / (rows * depth)


def _pairs(*arrays: Array) -> Iterator[tuple[Chunk, ...]]:
    # A buffered iterator casts chunk by chunk, and walks strided arrays in the same element order.
    chunks = np.nditer(
        arrays,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[["readonly"]] * len(arrays),
        op_dtypes=[np.dtype(np.float64)] * len(arrays),
        casting="unsafe",
        order="C",
        buffersize=_CHUNK,
    )
    for chunk in chunks:
        yield chunk if isinstance(chunk, tuple) else (chunk,)


def _add(total: Moments, left: Chunk, right: Chunk) -> Moments:
    error = left - right
    return Moments(
        signal=total.signal + float(np.dot(left, left)),
        power=total.power + float(np.dot(right, right)),
        product=total.product + float(np.dot(left, right)),
        noise=total.noise + float(np.dot(error, error)),
        peak=max(total.peak, float(np.max(np.abs(error), initial=0.0))),
    )


def _broken(array: Array) -> int:
    # NaN compares false with everything, so one comparison finds all three.
    return sum(int(np.count_nonzero(~(np.abs(chunk) <= _LARGEST))) for (chunk,) in _pairs(array))


def _broken_words(array: Array, owner: str = "") -> str:
    broken = _broken(array)
    return f"has {broken} of {array.size} values {owner}that are NaN, Inf or beyond 1e100" if broken else ""


def _unit_rows(rows: Array) -> Chunk:
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(norms == 0, 1.0, norms), dtype=np.float64)


def _neighbours(unit: Chunk, start: int, k: int) -> NDArray[np.int64]:
    similarity = unit[start : start + _ROWS] @ unit.T
    own = np.arange(len(similarity))
    similarity[own, start + own] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k].astype(np.int64)


def _require_rows(count: int, metric: str) -> None:
    if count < 1:
        raise UsageError(f"{metric} has no rows to be computed on")


def _shape(array: Array) -> str:
    return _spelled(array.shape)


def _spelled(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"
