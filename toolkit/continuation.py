"""Golden inputs with a past: a language model's prefills, split in two, the first part run for its cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.cache_names import is_past, is_present, past_of, present_of
from toolkit.types import ModelSpec, Session, Tensors

__all__ = ["TokenByToken", "continued", "every_position", "with_continuations"]

_LONGEST = 3


def with_continuations(session: Session, prefills: Sequence[Tensors]) -> tuple[Tensors, ...]:
    """The prefills, and for each without padding its last tokens with the cache of those before as their past.

    The first is continued by three tokens, as a chunk of a prompt is, the others by one, as in decoding.
    The session answers what the model itself would, so the pasts are real.
    """
    whole = [prefill for prefill in prefills if _length(prefill) > _LONGEST and prefill["attention_mask"].all()]
    made = [_continuation(session, prefill, 1 if index else _LONGEST) for index, prefill in enumerate(whole)]
    return (*prefills, *made)


def continued(
    answer: Tensors, ids: NDArray[np.int64], mask: NDArray[np.int64], lengths: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """The inputs of a next forward: ids [B, S], the whole mask [B, P + S], and the presents of `answer` as pasts.

    `lengths` [B] counts each row's real tokens so far: where the new ones stand.
    """
    positions = lengths[:, None] + np.arange(ids.shape[1])
    pasts = {past_of(name): array for name, array in answer.items() if is_present(name)}
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **pasts}


def every_position(session: Session, spec: ModelSpec) -> Session:
    """A session that answers logits at every position, which perplexity needs: itself, or one token at a time."""
    return TokenByToken(session) if spec.decoder is not None and spec.decoder.last_logits else session


class TokenByToken:
    """A graph with the last position's logits only, fed a text token by token with its cache, as in decoding.

    Closing is left to whoever opened the session.
    """

    def __init__(self, session: Session) -> None:
        self.ran_on = session.ran_on
        self._session = session

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """`logits` [B, S, V] of the text `input_ids` [B, S] under its mask; the inputs' pasts must be empty."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        answer: Tensors = {present_of(name): array for name, array in inputs.items() if is_past(name)}
        logits = []
        for position in range(ids.shape[1]):
            seen = mask[:, :position].sum(axis=1)
            step = continued(answer, ids[:, position : position + 1], mask[:, : position + 1], seen)
            answer = self._session.run({name: array for name, array in step.items() if name in inputs})
            logits.append(answer["logits"])
        return {"logits": np.concatenate(logits, axis=1)}

    def close(self) -> None:
        """Nothing is held."""


def _continuation(session: Session, prefill: Tensors, new: int) -> dict[str, NDArray[Any]]:
    ids, mask = prefill["input_ids"], prefill["attention_mask"]
    old = _length(prefill) - new
    per_token = ("input_ids", "attention_mask", "position_ids")
    head = {name: array[:, :old] if name in per_token else array for name, array in prefill.items()}
    return continued(session.run(head), ids[:, old:], mask, np.full(len(ids), old))


def _length(prefill: Tensors) -> int:
    return int(prefill["input_ids"].shape[1])
