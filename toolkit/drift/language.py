"""Language models: perplexity, KL divergence and top-1 agreement, position by position, in one streaming pass.

Logits [batch, sequence, vocabulary] are large, so rows are widened to float64 a few at a time, batches are taken
one by one, and the reference may be memory-mapped or a summary (see `toolkit.drift.summary`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from toolkit.drift import metrics
from toolkit.drift.report import TaskDrift
from toolkit.errors import UsageError
from toolkit.types import Tensors

__all__ = ["Reference", "Rows", "Text", "Whole", "chunks", "language_drift", "log_softmax"]

Array = NDArray[Any]
Wide = NDArray[np.float64]

_INPUT, _MASK = "input_ids", "attention_mask"
# Elements of a chunk: 2 MB in float64, of which a comparison holds about five.
_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True)
class Text:
    """The positions of a batch, row after row, [batch · sequence] each.

    `attended` positions are no padding. `scored` ones have a next token, which is in `targets` (0 elsewhere).
    """

    shape: tuple[int, int]
    attended: NDArray[np.bool_]
    scored: NDArray[np.bool_]
    targets: NDArray[np.int64]

    @classmethod
    def of(cls, inputs: Tensors) -> Self:
        """From `input_ids` [batch, sequence] and, where there is one, `attention_mask` [batch, past + sequence].

        Raises UsageError without `input_ids` of rank 2.
        """
        tokens = inputs.get(_INPUT)
        if tokens is None or tokens.ndim != 2:
            raise UsageError(f"perplexity needs '{_INPUT}' [batch, sequence] in every batch of the evaluation")
        rows, width = tokens.shape
        attended = inputs.get(_MASK, np.ones((rows, width), np.int64))[:, -width:] != 0
        scored, targets = np.zeros((rows, width), np.bool_), np.zeros((rows, width), np.int64)
        scored[:, :-1] = attended[:, :-1] & attended[:, 1:]
        targets[:, :-1] = np.where(scored[:, :-1], tokens[:, 1:], 0)
        return cls((rows, width), attended.reshape(-1), scored.reshape(-1), targets.reshape(-1))

    def require_fit(self, logits: tuple[int, ...]) -> None:
        """Raise UsageError unless logits of that shape answer every position, and every token has one."""
        if len(logits) != 3 or logits[:2] != self.shape:
            raise UsageError(
                f"the reference's logits {list(logits)} do not fit the text's positions {list(self.shape)}",
                hint="Perplexity needs the logits of every position, not of the last alone.",
            )
        outside = self.targets[(self.targets < 0) | (self.targets >= logits[2])]
        if outside.size:
            raise UsageError(f"token {outside[0]} of the evaluation is outside the vocabulary of {logits[2]}")


@dataclass(frozen=True, slots=True)
class Rows:
    """What a reference says of some positions: its own `nll` and `top1` token, and the KL divergence from it, [n]."""

    nll: Wide
    top1: NDArray[np.int64]
    kl: Wide


class Reference(Protocol):
    """The reference's answers for one batch."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its logits, [batch, sequence, vocabulary]."""
        ...

    @property
    def lower_bound(self) -> bool:
        """Whether its KL divergence is at most the true one, not equal to it."""
        ...

    def failure(self, candidate: Array | None) -> str:
        """Why the candidate's logits cannot be compared with it, as half a sentence; empty if they can."""
        ...

    def against(self, rows: slice, candidate: Wide, targets: NDArray[np.int64]) -> Rows:
        """Compare with the candidate's log-probabilities [n, vocabulary] of some positions, counted over the batch."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """A reference that has all its logits, [batch, sequence, vocabulary]; they may be memory-mapped."""

    logits: Array
    lower_bound: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its logits."""
        return self.logits.shape

    def failure(self, candidate: Array | None) -> str:
        """Why not: missing, another shape, NaN or Inf on either side."""
        return metrics.failure(self.logits, candidate)

    def against(self, rows: slice, candidate: Wide, targets: NDArray[np.int64]) -> Rows:
        """KL is Σ p·(log p - log q), in nats (Kullback & Leibler, 1951)."""
        logits = self.logits.reshape(-1, self.shape[-1])[rows]
        own = log_softmax(logits)
        nll = _nll(own, targets)
        mass = np.exp(own)
        own -= candidate
        # Rounding may leave a hair below zero, which no divergence is.
        return Rows(nll, np.argmax(logits, axis=1), np.maximum(np.einsum("nv,nv->n", mass, own), 0.0))


@dataclass(slots=True)
class _Totals:
    """Sums over all positions so far."""

    positions: int = 0
    scored: int = 0
    kl: float = 0.0
    agreed: int = 0
    reference_nll: float = 0.0
    candidate_nll: float = 0.0

    def add(self, text: Text, rows: slice, own: Rows, nll: Wide, top1: NDArray[np.int64]) -> None:
        attended, scored = text.attended[rows], text.scored[rows]
        self.positions += int(attended.sum())
        self.scored += int(scored.sum())
        self.kl += float(own.kl[attended].sum())
        self.agreed += int((own.top1 == top1)[attended].sum())
        self.reference_nll += float(own.nll[scored].sum())
        self.candidate_nll += float(nll[scored].sum())


def language_drift(
    output: str, batches: Sequence[Tensors], references: Iterable[Reference], candidate: Iterable[Tensors]
) -> TaskDrift:
    """Perplexity of both, KL(reference || candidate) and top-1 agreement, over all attended positions of all batches.

    Perplexity is exp of the mean negative log-likelihood (nats) of the next token, at every position that has one.
    KL, in nats, and agreement are means over positions, the last ones included. `candidate` yields the outputs of
    each batch in turn, so that only one is held. Logits that are missing, misshapen, NaN or Inf are a failure.
    Raises UsageError where the batches differ in number, or there is nothing to score.
    """
    totals, bound = _Totals(), False
    answers = iter(candidate)
    for index, (batch, reference) in enumerate(zip(batches, references, strict=True)):
        # In a function of its own, which lets go of these logits before the next are made.
        reason = _batch(totals, Text.of(batch), reference, _next(answers, index, len(batches)).get(output))
        if reason:
            return TaskDrift(metric="language", output=output, count=0, failure=f"{reason} (batch {index})")
        bound = bound or reference.lower_bound
    if not totals.scored:
        raise UsageError("perplexity has no positions to be computed on", hint="Give texts of two tokens or more.")
    return _said(totals, output, bound)


def log_softmax(rows: Array) -> Wide:
    """Log-probabilities of logits [n, vocabulary], in float64, with the largest logit taken out first."""
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    """Slices over the positions, each small enough to be widened to float64."""
    step = max(1, _ELEMENTS // max(1, vocabulary))
    return (slice(start, min(start + step, positions)) for start in range(0, positions, step))


def _batch(totals: _Totals, text: Text, reference: Reference, logits: Array | None) -> str:
    text.require_fit(reference.shape)
    reason = reference.failure(logits)
    if logits is None or reason:
        return reason
    flat = logits.reshape(-1, logits.shape[-1])
    for rows in chunks(*flat.shape):
        own, targets = log_softmax(flat[rows]), text.targets[rows]
        top1 = np.argmax(flat[rows], axis=1)
        totals.add(text, rows, reference.against(rows, own, targets), _nll(own, targets), top1)
    return ""


def _nll(log_probabilities: Wide, targets: NDArray[np.int64]) -> Wide:
    return -log_probabilities[np.arange(len(targets)), targets]


def _next(answers: Iterator[Tensors], index: int, count: int) -> Tensors:
    try:
        return next(answers)
    except StopIteration:
        raise UsageError(f"the reference has {count} batches of text, the candidate {index}") from None


def _said(totals: _Totals, output: str, bound: bool) -> TaskDrift:
    before, after = totals.reference_nll / totals.scored, totals.candidate_nll / totals.scored
    return TaskDrift(
        metric="language",
        output=output,
        count=totals.positions,
        reference_perplexity=_exp(before),
        candidate_perplexity=_exp(after),
        perplexity_ratio=_exp(after - before),
        kl=totals.kl / totals.positions,
        kl_is_lower_bound=bound,
        top1_agreement=totals.agreed / totals.positions,
    )


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
