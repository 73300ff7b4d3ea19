"""What is kept of the reference's logits where all of them are too many: a bundle's evaluation of a language model.

For each position: its negative log-likelihood of the next token, its top-1 token, the ids and log-probabilities of
its 64 likeliest tokens, and the log-probability of all others together. 1,024 positions take 400 to 530 kB, where
the logits of 49,152 tokens take 200 MB. Perplexity and top-1 agreement from it are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from toolkit.drift import metrics
from toolkit.drift.language import Rows, Text, Wide, chunks, log_softmax
from toolkit.errors import UsageError
from toolkit.types import Tensors

__all__ = ["TOP", "Summary", "is_summary", "summarize"]

TOP = 64
"""How many of the likeliest tokens are kept by id."""

_PARTS = ("nll", "top1", "ids", "log_probabilities", "vocabulary")


@dataclass(frozen=True, slots=True)
class Summary:
    """The reference's answers for one batch of `n` positions, in short; `shape` is that of its logits.

    `nll` and `top1` are [n], `ids` [n, k] and `log_probabilities` [n, k + 1], the last column being all other tokens.
    """

    nll: Wide
    top1: NDArray[np.int64]
    ids: NDArray[np.int64]
    log_probabilities: Wide
    shape: tuple[int, ...]
    lower_bound: bool = True

    @classmethod
    def of(cls, tensors: Tensors, output: str) -> Self:
        """From what `summarize` wrote of that output. Raises UsageError where parts are missing or do not fit."""
        parts = {part: tensors.get(f"{output}.{part}") for part in _PARTS}
        lacking = [part for part, value in parts.items() if value is None]
        if lacking:
            raise UsageError(f"the summary of the reference's '{output}' lacks {', '.join(lacking)}")
        nll, top1, ids, log_probabilities, vocabulary = (np.asarray(value) for value in parts.values())
        _require_fit(nll, top1, ids, log_probabilities, vocabulary)
        return cls(
            nll.reshape(-1).astype(np.float64),
            top1.reshape(-1).astype(np.int64),
            ids.reshape(-1, ids.shape[-1]).astype(np.int64),
            log_probabilities.reshape(-1, log_probabilities.shape[-1]).astype(np.float64),
            (*nll.shape, int(vocabulary)),
        )

    def failure(self, candidate: NDArray[Any] | None) -> str:
        """Why not: missing, another shape, NaN or Inf."""
        return metrics.defect(candidate, self.shape)

    def against(self, rows: slice, candidate: Wide, targets: NDArray[np.int64]) -> Rows:
        """KL between the two distributions over the kept tokens and one bucket for all others.

        Merging outcomes never raises a divergence (the log-sum inequality; Cover & Thomas, Elements of Information
        Theory, theorem 2.7.1), so this is a lower bound of the true one, and equal to it where the others have no mass;
        both but for the float32 rounding of what is stored, which moves a divergence K by less than 1e-6 · (K + √K).
        """
        ids, own = self.ids[rows], self.log_probabilities[rows]
        kept = np.take_along_axis(candidate, ids, axis=1)
        theirs = np.concatenate([kept, _outside(candidate, ids)], axis=1)
        mass = np.exp(own)
        present = mass > 0
        ratio = np.subtract(own, theirs, out=np.zeros_like(own), where=present)
        # Both sum to one; with the sums kept in, rounding leaves no divergence of a distribution from itself.
        terms = np.multiply(mass, ratio, out=np.zeros_like(own), where=present) - mass + np.exp(theirs)
        return Rows(self.nll[rows], self.top1[rows], np.maximum(terms.sum(axis=1), 0.0))


def is_summary(tensors: Tensors, output: str) -> bool:
    """Whether these are a summary of the output, not the output itself."""
    return output not in tensors and f"{output}.nll" in tensors


def summarize(logits: NDArray[Any], inputs: Tensors, output: str) -> dict[str, NDArray[Any]]:
    """The summary of logits [batch, sequence, vocabulary], as tensors named after the output.

    `nll` float64 and `top1` int32 [batch, sequence], `ids` uint16 or int32 [batch, sequence, k], `log_probabilities`
    float32 [batch, sequence, k + 1], `vocabulary` int64 []. Raises UsageError where logits and inputs do not fit.
    """
    text = Text.of(inputs)
    text.require_fit(logits.shape)
    flat = logits.reshape(-1, logits.shape[2])
    parts = [_summarized(flat[rows], text.targets[rows]) for rows in chunks(*flat.shape)]
    nll, top1, ids, log_probabilities = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {
        f"{output}.nll": nll.reshape(text.shape),
        f"{output}.top1": top1.reshape(text.shape),
        f"{output}.ids": ids.reshape(*text.shape, -1),
        f"{output}.log_probabilities": log_probabilities.reshape(*text.shape, -1),
        f"{output}.vocabulary": np.array(logits.shape[2], np.int64),
    }


def _summarized(logits: NDArray[Any], targets: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    own = log_softmax(logits)
    vocabulary = own.shape[1]
    count = min(TOP, vocabulary)
    ids = np.argpartition(own, vocabulary - count, axis=1)[:, vocabulary - count :]
    ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(own, ids, axis=1), axis=1, kind="stable"), axis=1)
    buckets = np.concatenate([np.take_along_axis(own, ids, axis=1), _outside(own, ids)], axis=1)
    nll = -own[np.arange(len(targets)), targets]
    narrow = np.uint16 if vocabulary <= 1 << 16 else np.int32
    return nll, np.argmax(logits, axis=1).astype(np.int32), ids.astype(narrow), buckets.astype(np.float32)


def _outside(log_probabilities: Wide, ids: NDArray[np.int64]) -> Wide:
    """The log of the mass of all tokens but `ids`, [n, 1]; -inf where there are no others."""
    if ids.shape[1] == log_probabilities.shape[1]:
        return np.full((len(ids), 1), -np.inf)
    others = log_probabilities.copy()
    np.put_along_axis(others, ids, -np.inf, axis=1)
    # Its own peak, so that a mass too small for a float64 keeps its logarithm.
    peak = others.max(axis=1, keepdims=True)
    others -= peak
    return np.asarray(peak + np.log(np.exp(others).sum(axis=1, keepdims=True)), dtype=np.float64)


def _require_fit(
    nll: NDArray[Any], top1: NDArray[Any], ids: NDArray[Any], log_probabilities: NDArray[Any], vocabulary: NDArray[Any]
) -> None:
    fits = (
        vocabulary.shape == ()
        and ids.ndim == log_probabilities.ndim == 3
        and nll.shape == top1.shape == ids.shape[:2] == log_probabilities.shape[:2]
        and log_probabilities.shape[2] == ids.shape[2] + 1
        and (ids.size == 0 or (int(ids.min()) >= 0 and int(ids.max()) < int(vocabulary)))
    )
    if not fits:
        raise UsageError("the summary of the reference's logits does not fit together", hint="Write the bundle anew.")
