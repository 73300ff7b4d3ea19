"""Golden inputs with a past: a language model's prefills, split in two, the first part run for its cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.types import Session, Tensors

__all__ = ["continued", "with_continuations"]

_LONGEST = 3


def with_continuations(session: Session, prefills: Sequence[Tensors]) -> tuple[Tensors, ...]:
    """The prefills, and for each without padding its last tokens with the cache of those before as their past.

    Several rows are continued by up to three tokens, as a chunk of a prompt is; a single row by one, as in decoding.
    The session answers what the model itself would, so the pasts are real.
    """
    whole = [prefill for prefill in prefills if _length(prefill) > _LONGEST and prefill["attention_mask"].all()]
    made = [_continuation(session, prefill, 1 if len(prefill["input_ids"]) == 1 else _LONGEST) for prefill in whole]
    return (*prefills, *made)


def continued(
    answer: Tensors, ids: NDArray[np.int64], mask: NDArray[np.int64], lengths: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """The inputs of a next forward: ids [B, S], the whole mask [B, P + S], and the presents of `answer` as pasts.

    `lengths` [B] counts each row's real tokens so far: where the new ones stand.
    """
    positions = lengths[:, None] + np.arange(ids.shape[1])
    pasts = {
        name.replace("present", "past_key_values", 1): array
        for name, array in answer.items()
        if name.startswith("present.")
    }
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **pasts}


def _continuation(session: Session, prefill: Tensors, new: int) -> dict[str, NDArray[Any]]:
    ids, mask = prefill["input_ids"], prefill["attention_mask"]
    old = _length(prefill) - new
    per_token = ("input_ids", "attention_mask", "position_ids")
    head = {name: array[:, :old] if name in per_token else array for name, array in prefill.items()}
    return continued(session.run(head), ids[:, old:], mask, np.full(len(ids), old))


def _length(prefill: Tensors) -> int:
    return int(prefill["input_ids"].shape[1])
