"""What an attention attends to, from its inputs: the probabilities that a fused operator never shows, in float64.

The arithmetic is that of `docs/operators/FusedAttention.md`: scale, softcap, mask and ALiBi, exclusion, softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AttentionCall", "divergence", "entropy", "head_maps", "rotated"]

Array = NDArray[Any]
Map = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """One attention as it was called on one batch; arrays may be memory-mapped and of any float type.

    query [B, Hq, Sq, D] and key [B, Hkv, Skv, D], past included; `first` int64 [B] is where each row's first query
    stands among the keys. `mask` is bool (True = attend) or float (added), broadcastable to [B, Hq, Sq, Skv]; `slopes`
    [Hq] are ALiBi's. A query sees keys from `left` before its own to `right` after it, -1: all. `ends` int64 [B] are
    how many keys each row has, where the rest is a buffer's. `scores` [B, Hq, Sq, Skv] are what the softmax reads,
    where a graph shows them; then query [B, Hq, Sq, 0] and key are empty and nothing else counts.
    """

    query: Array
    key: Array
    first: NDArray[np.int64]
    scale: float
    mask: Array | None = None
    slopes: Array | None = None
    softcap: float = 0.0
    left: int = -1
    right: int = -1
    ends: NDArray[np.int64] | None = None
    scores: Array | None = None

    @property
    def rows(self) -> int:
        """The batch."""
        return max(int(self.query.shape[0]), int(self.key.shape[0]))


def head_maps(call: AttentionCall, row: int) -> Map:
    """The probabilities of one row of the batch, [Hq, Sq, Skv].

    A query that may attend to nothing, or whose scores are NaN or +Inf, has zeros.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if call.scores is not None:
            return _softmax(_row(call.scores, row))
        scores = _scores(call, row)
        if call.softcap > 0:
            scores = call.softcap * np.tanh(scores / call.softcap)
        distance = np.arange(scores.shape[2]) - (int(call.first[row]) + np.arange(scores.shape[1]))[:, None]
        if call.slopes is not None:
            scores -= np.asarray(call.slopes, np.float64)[:, None, None] * np.abs(distance)
        scores = _masked(scores, call.mask, row)
        scores[:, ~_allowed(call, row, distance)] = -np.inf
        return _softmax(scores)


def divergence(left: Map, right: Map) -> Map:
    """Jensen-Shannon divergence of two sets of distributions over the last axis, in nats: 0 to ln 2.

    It is the entropy of their mean less the mean of their entropies (Lin, 1991). Where one of the two is zeros it is
    ln 2, where both are it is 0.
    """
    gap = entropy((left + right) / 2) - (entropy(left) + entropy(right)) / 2
    one_is_empty = (left.sum(axis=-1) == 0) != (right.sum(axis=-1) == 0)
    return np.asarray(np.where(one_is_empty, np.log(2), np.clip(gap, 0, np.log(2))), np.float64)


def entropy(probabilities: Map) -> Map:
    """Shannon's entropy over the last axis, in nats."""
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    return np.asarray(-(probabilities * logs).sum(axis=-1), np.float64)


def rotated(rows: Array, cos: Array, sin: Array, *, interleaved: bool) -> Array:
    """Rotary embedding of [.., S, D]: cos and sin [S, R / 2] turn the first R numbers of each, the others stay.

    Interleaved, a pair is two neighbours; else a number and the one R / 2 behind it.
    """
    width = 2 * cos.shape[-1]
    turning, rest = np.asarray(rows[..., :width], np.float64), rows[..., width:]
    first, second = (turning[..., 0::2], turning[..., 1::2]) if interleaved else np.split(turning, 2, axis=-1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    whole = np.stack(pair, axis=-1).reshape(turning.shape) if interleaved else np.concatenate(pair, axis=-1)
    return np.concatenate([whole, rest], axis=-1)


def _scores(call: AttentionCall, row: int) -> Map:
    query = _row(call.query, row) * call.scale
    key = _row(call.key, row)
    heads, queries, size = query.shape
    groups = query.reshape(key.shape[0], -1, size)
    return np.asarray((groups @ key.transpose(0, 2, 1)).reshape(heads, queries, key.shape[1]))


def _row(array: Array, row: int) -> Map:
    return np.asarray(array[row if array.shape[0] > 1 else 0], np.float64)


def _masked(scores: Map, mask: Array | None, row: int) -> Map:
    if mask is None:
        return scores
    whole = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    part = np.asarray(whole[row if whole.shape[0] > 1 else 0])
    if part.dtype == np.bool_:
        return np.asarray(np.where(part, scores, -np.inf))
    return np.asarray(scores + part.astype(np.float64))


def _allowed(call: AttentionCall, row: int, distance: NDArray[np.int64]) -> NDArray[np.bool_]:
    """What causality, the window and the end of the row allow, [Sq, Skv]."""
    allowed = np.ones(distance.shape, bool)
    if call.left >= 0:
        allowed &= distance >= -call.left
    if call.right >= 0:
        allowed &= distance <= call.right
    if call.ends is not None:
        allowed &= np.arange(distance.shape[1]) < int(call.ends[row])
    return allowed


def _softmax(scores: Map) -> Map:
    peak = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(np.where(np.isfinite(peak), scores - peak, -np.inf))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(weights, total, where=total > 0, out=np.zeros_like(weights)))
