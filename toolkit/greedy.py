"""The reference's own greedy continuations of a few golden prompts, to hold a language model's engine against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from toolkit.drift.greedy import compare_greedy, greedy_tokens
from toolkit.drift.report import GreedyDrift
from toolkit.generation.session_decoder import SessionDecoder
from toolkit.types import Decoder, ModelSpec, Session, Tensors

__all__ = ["Greedy"]

_STEPS = 64


@dataclass(frozen=True, slots=True)
class Greedy:
    """Prompts, token ids [length] each, and what the reference writes after them, int64 [prompts, steps]."""

    prompts: tuple[NDArray[np.int64], ...]
    tokens: NDArray[np.int64]

    @classmethod
    def of(cls, session: Session, spec: ModelSpec, golden: Sequence[Tensors]) -> Self | None:
        """Continue the rows of one golden prefill by up to 64 tokens; None for a model with no room for one."""
        prompts = _prompts(golden)
        longest = max((len(prompt) for prompt in prompts), default=0)
        steps = min(_STEPS, spec.dims["total_sequence"].max - longest)
        if spec.decoder is None or not prompts or steps < 1:
            return None
        decoder = SessionDecoder(session, spec.inputs, spec.decoder, limit=longest + steps, rows=len(prompts))
        return cls(prompts, greedy_tokens(decoder, prompts, steps))

    @property
    def positions(self) -> int:
        """How many positions a cache needs for the longest of them."""
        return max(map(len, self.prompts)) + int(self.tokens.shape[1])

    def compare(self, decoder: Decoder) -> GreedyDrift:
        """What the decoder writes after the same prompts, against the reference; closes the decoder."""
        try:
            return compare_greedy(self.tokens, greedy_tokens(decoder, self.prompts, self.tokens.shape[1]))
        finally:
            decoder.close()


def _prompts(golden: Sequence[Tensors]) -> tuple[NDArray[np.int64], ...]:
    """The rows of the prefill that has most of them and no padding."""
    whole = [batch["input_ids"] for batch in golden if batch["attention_mask"].all() and _is_first(batch)]
    widest: NDArray[np.int64] = max(whole, key=len, default=np.zeros((0, 0), np.int64))
    return tuple(widest)


def _is_first(batch: Tensors) -> bool:
    return bool(batch["past_key_values.0.key"].shape[2] == 0)
