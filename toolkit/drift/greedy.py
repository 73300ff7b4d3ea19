"""Greedy agreement: whether two language models write the same text when each always takes its likeliest token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.drift.report import GreedyDrift
from toolkit.errors import DriftError, UsageError
from toolkit.types import Decoder

__all__ = ["compare_greedy", "greedy_agreement", "greedy_tokens"]

Tokens = NDArray[np.int64]


def greedy_agreement(reference: Decoder, candidate: Decoder, prompts: Sequence[Tokens], steps: int = 64) -> GreedyDrift:
    """Continue every prompt, token ids [length], by `steps` tokens in both decoders, and compare.

    Use `greedy_tokens` and `compare_greedy` where the two should not be open at once. Raises as those do.
    """
    return compare_greedy(greedy_tokens(reference, prompts, steps), greedy_tokens(candidate, prompts, steps))


def greedy_tokens(decoder: Decoder, prompts: Sequence[Tokens], steps: int = 64) -> Tokens:
    """The likeliest continuation of every prompt, int64 [prompts, steps], each token fed back as it comes.

    An end-of-text token does not end it, so that all rows are equally long; on a tie the lower id wins. Prompts of one
    length go through together where the decoder holds as many rows: a step reads the weights once for all.
    Raises UsageError for no prompt, an empty one or one that does not fit the cache, DriftError for NaN or Inf logits.
    """
    if not prompts or steps < 1:
        raise UsageError("greedy agreement needs at least one prompt and one step")
    for index, prompt in enumerate(prompts):
        _require_room(decoder, index, prompt, steps)
    together = len({len(prompt) for prompt in prompts}) == 1 and decoder.rows >= len(prompts)
    batches = [np.stack(prompts)] if together else [prompt[None] for prompt in prompts]
    return np.concatenate([_continue(decoder, batch, steps) for batch in batches])


def compare_greedy(reference: Tokens, candidate: Tokens) -> GreedyDrift:
    """How far two continuations [prompts, steps] agree. Raises UsageError where their shapes differ."""
    if reference.shape != candidate.shape or reference.ndim != 2 or not reference.size:
        raise UsageError(
            f"greedy agreement needs tokens [prompts, steps] of one shape, got {list(reference.shape)} "
            f"and {list(candidate.shape)}"
        )
    same = reference == candidate
    first = (None if row.all() else int(row.argmin()) for row in same)
    return GreedyDrift(steps=reference.shape[1], agreement=float(same.mean()), first_divergence=tuple(first))


def _continue(decoder: Decoder, prompts: Tokens, steps: int) -> Tokens:
    rows, length = prompts.shape
    decoder.start(rows)
    logits = decoder.forward(prompts, np.full(rows, length, np.int64))
    chosen = [_likeliest(decoder, logits, 0)]
    for step in range(1, steps):
        logits = decoder.forward(chosen[-1][:, None], np.ones(rows, np.int64))
        chosen.append(_likeliest(decoder, logits, step))
    return np.stack(chosen, axis=1)


def _likeliest(decoder: Decoder, logits: NDArray[np.float32], step: int) -> Tokens:
    if not np.isfinite(logits).all():
        raise DriftError(
            f"{decoder.ran_on} answered logits that are NaN or Inf at step {step} of a greedy continuation",
            hint="Look at the weights; an fp16 model may need bf16 or fp32.",
        )
    return np.asarray(logits.argmax(axis=-1), np.int64)


def _require_room(decoder: Decoder, index: int, prompt: Tokens, steps: int) -> None:
    if prompt.ndim != 1 or not prompt.size:
        raise UsageError(f"prompt {index} is no list of token ids: its shape is {list(prompt.shape)}")
    # The last token that is chosen is never fed.
    needed = len(prompt) + steps - 1
    if needed > decoder.limit:
        raise UsageError(
            f"prompt {index} of {len(prompt)} tokens and {steps} steps need {needed} positions, "
            f"the cache of {decoder.ran_on} holds {decoder.limit}",
            hint="Take shorter prompts or fewer steps.",
        )
