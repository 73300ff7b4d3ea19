"""From logits to the next token: greedy, or drawn after repetition penalty, temperature, top-k and top-p.

The order is that of Transformers' generation: penalty, temperature, top-k, top-p.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import StageError, UsageError

__all__ = ["Sampler", "Sampling", "check_finite", "nucleus", "penalised"]

_FIRST_LOOK = 128


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; top-k None and top-p 1 leave all tokens in; penalty 1 is none.

    Raises UsageError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature >= 0, "0 (greedy) or more")
        if self.top_k is not None:
            _check("top-k", self.top_k, self.top_k >= 1, "1 or more")
        _check("top-p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1")
        _check("repetition penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0; 1 is none")
        _check("seed", self.seed, self.seed >= 0, "0 or more")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


class Sampler:
    """Chooses tokens for some rows. Each row draws from a generator of its own, seeded by the seed and its number.

    So a row's tokens do not depend on when the other rows end.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[NDArray[np.int64]], vocabulary: int) -> None:
        self._sampling = sampling
        self._generators = [np.random.default_rng([sampling.seed, row]) for row in range(len(prompts))]
        penalised = sampling.repetition_penalty != 1
        self._seen = np.zeros((len(prompts), vocabulary), bool) if penalised else None
        for row, prompt in enumerate(prompts):
            self.observe(row, prompt)

    def observe(self, row: int, tokens: NDArray[np.int64]) -> None:
        """Note tokens that the row holds, for the repetition penalty."""
        if self._seen is not None:
            self._seen[row, tokens] = True

    def choose(self, logits: NDArray[np.float32], rows: Sequence[int]) -> NDArray[np.int64]:
        """The next token of each of `rows`, int64 [n], from its logits [n, vocabulary]; the tokens are noted."""
        if self._seen is not None:
            logits = penalised(logits, self._seen[list(rows)], self._sampling.repetition_penalty)
        tokens = np.argmax(logits, axis=1) if self._sampling.greedy else self._draw(logits, rows)
        for row, token in zip(rows, tokens, strict=True):
            self.observe(row, np.asarray([token]))
        return tokens.astype(np.int64)

    def _draw(self, logits: NDArray[np.float32], rows: Iterable[int]) -> NDArray[np.int64]:
        tokens, shares = nucleus(logits / self._sampling.temperature, self._sampling.top_k, self._sampling.top_p)
        sums = np.cumsum(shares, axis=1)
        points = np.array([self._generators[row].random() for row in rows])
        places = (sums <= points[:, None] * sums[:, -1:]).sum(axis=1)
        # Rounding can put the point at the very end, behind the last token that has a share.
        last = shares.shape[1] - 1 - np.argmax(shares[:, ::-1] > 0, axis=1)
        return np.take_along_axis(tokens, np.minimum(places, last)[:, None], axis=1)[:, 0]


def penalised(logits: NDArray[np.float32], seen: NDArray[np.bool_], penalty: float) -> NDArray[np.float32]:
    """Logits [n, vocabulary] of tokens that were seen made less likely: positive ones divided, others multiplied.

    Source: Keskar et al., CTRL (2019), section 4.1, with the sign rule that Transformers uses.
    """
    less = np.where(logits > 0, logits / penalty, logits * penalty)
    return np.where(seen, less, logits).astype(np.float32)


def nucleus(
    scores: NDArray[np.floating], top_k: int | None, top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn and their shares of 1, both [n, m]; a share of 0 fills up shorter rows.

    First the `top_k` highest scores [n, vocabulary] (of equals, those of lower number), then, of their softmax, the
    smallest set of likeliest tokens that holds at least `top_p`. Source: Holtzman et al. (2020), section 3.1.
    """
    weights = np.exp(np.asarray(scores - scores.max(axis=1, keepdims=True), np.float64))
    if top_k is None and top_p >= 1:
        everything = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        return everything, weights / weights.sum(axis=1, keepdims=True)
    vocabulary = scores.shape[1]
    if top_k is not None:
        tokens = _likeliest(weights, min(top_k, vocabulary))
        kept = np.take_along_axis(weights, tokens, axis=1)
        return tokens, _cut(kept, kept.sum(axis=1, keepdims=True), top_p)
    total, count = weights.sum(axis=1, keepdims=True), min(_FIRST_LOOK, vocabulary)
    # Sorting the whole vocabulary would cost as much as a decoding step; the nucleus is nearly always small.
    while True:
        tokens = _likeliest(weights, count)
        kept = np.take_along_axis(weights, tokens, axis=1)
        if count == vocabulary or bool((kept.sum(axis=1, keepdims=True) >= top_p * total).all()):
            return tokens, _cut(kept, total, top_p)
        count = min(count * 8, vocabulary)


def check_finite(logits: NDArray[np.float32], rows: Sequence[int], positions: Sequence[int]) -> None:
    """Raises StageError that names the first row, and its position, whose logits [n, vocabulary] hold NaN or Inf."""
    finite = np.isfinite(logits).all(axis=1)
    if finite.all():
        return
    bad = int(np.argmin(finite))
    odd = int((~np.isfinite(logits[bad])).sum())
    raise StageError(
        "generate",
        f"{odd} of {logits.shape[1]} logits are NaN or Inf in row {rows[bad]} at position {positions[bad]}",
        hint="Run `toolkit check` on the bundle; a scheme with more precision, such as fp32, may hold.",
    )


def _cut(weights: NDArray[np.float64], total: NDArray[np.float64], top_p: float) -> NDArray[np.float64]:
    """Shares of weights in falling order: 0 for those that come after `top_p` of `total` is reached."""
    before = np.cumsum(weights, axis=1) - weights
    kept: NDArray[np.float64] = np.where((before < top_p * total) | (top_p >= 1), weights, 0.0)
    shares: NDArray[np.float64] = kept / kept.sum(axis=1, keepdims=True)
    return shares


def _likeliest(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The tokens of the `count` greatest weights, in falling order; of equals, those of lower number."""
    order: NDArray[np.int64]
    if count == weights.shape[1]:
        order = np.argsort(-weights, axis=1, kind="stable")
        return order
    least = -np.partition(-weights, count - 1, axis=1)[:, count - 1]
    return np.stack([_row_likeliest(row, bound, count) for row, bound in zip(weights, least, strict=True)])


def _row_likeliest(weights: NDArray[np.float64], bound: float, count: int) -> NDArray[np.int64]:
    chosen = np.flatnonzero(weights >= bound)
    order: NDArray[np.int64] = chosen[np.argsort(-weights[chosen], kind="stable")][:count]
    return order


def _check(name: str, value: float, allowed: bool, hint: str) -> None:
    if not allowed or not math.isfinite(value):
        raise UsageError(f"{name} {value:g} is outside its range", hint=f"Allowed: {hint}.")
