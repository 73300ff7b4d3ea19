"""Attention maps of reference and candidate, layer by layer and head by head: how far they are, and where to look."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.compare.attention_map import AttentionCall, Map, divergence, entropy, head_maps
from toolkit.compare.attention_picture import picture
from toolkit.compare.result import AttentionPicture, HeadDrift
from toolkit.errors import UsageError
from toolkit.types import Tensors

__all__ = [
    "AttentionDrift",
    "AttentionSource",
    "RecordedAttention",
    "attention_drift",
    "attention_pictures",
    "worst_heads",
]

_MASK = "attention_mask"


class AttentionSource(Protocol):
    """What runs batches and tells what its attentions were called with: a model, a graph, or a record of either."""

    ran_on: str
    unread: Mapping[str, str]

    def calls(self, batch: Tensors, folder: Path) -> dict[str, AttentionCall]:
        """Run the batch; the answer by module's path may lie memory-mapped in `folder`."""
        ...


class RecordedAttention:
    """One side's calls on these batches, run at once: the model itself can go before the other side is loaded.

    Queries and keys of all layers and batches lie in `folder`, which must be there as long as this is used.
    """

    def __init__(self, source: AttentionSource, batches: Sequence[Tensors], folder: Path) -> None:
        self.ran_on, self.unread = source.ran_on, source.unread
        self._batches = batches
        self._calls = [source.calls(batch, folder / str(index)) for index, batch in enumerate(batches)]

    def calls(self, batch: Tensors, folder: Path) -> dict[str, AttentionCall]:
        """What was recorded of this batch, one of those that were run. Raises UsageError for another one."""
        found = next((calls for each, calls in zip(self._batches, self._calls, strict=True) if each is batch), None)
        if found is None:
            raise UsageError("this batch was not recorded", hint="Compare on the batches that were.")
        return found


@dataclass(frozen=True, slots=True)
class AttentionDrift:
    """All heads of all layers in the order of execution; `skipped` says which modules are not there, and why."""

    heads: tuple[HeadDrift, ...]
    skipped: Mapping[str, str]


def attention_drift(
    reference: AttentionSource, candidate: AttentionSource, batches: Sequence[Tensors], work: Path | None = None
) -> AttentionDrift:
    """Compare the maps on the same batches, one row of one layer at a time, in float64.

    Every head's numbers are means over the queries that attend to anything in the reference, padded ones left out: what
    `attention_mask` [B, T] has as 0. Queries and keys of one batch lie on disk meanwhile, in `work` or where the system
    keeps temporary files. Raises UsageError without batches, and as the two sides do where they fail.
    """
    if not batches:
        raise UsageError("attention maps need inputs to be compared on", hint="Give at least one batch.")
    sums: dict[str, _Sums] = {}
    skipped = {**reference.unread, **candidate.unread}
    for batch in batches:
        with _both(reference, candidate, batch, work) as (left, right):
            for name in dict.fromkeys([*left, *right]):
                reason = _why_not(left.get(name), right.get(name))
                if reason:
                    skipped.setdefault(name, reason)
                if name not in skipped:
                    sums.setdefault(name, _Sums()).add(left[name], right[name], batch)
    heads = [head for name, each in sums.items() if name not in skipped for head in each.heads(name)]
    return AttentionDrift(tuple(heads), skipped)


def attention_pictures(
    reference: AttentionSource,
    candidate: AttentionSource,
    batch: Tensors,
    heads: Mapping[str, int],
    *,
    row: int = 0,
    name: str = "",
    labels: Sequence[str] = (),
    work: Path | None = None,
) -> tuple[AttentionPicture, ...]:
    """Each layer's map of that head for one row of a batch, in the order of `heads`; padding is cut off.

    `heads` is what `worst_heads` answers. `labels` are the row's tokens, where it has such; they are cut as the keys
    are. `name` is what the input is called.
    """
    with _both(reference, candidate, batch, work) as (left, right):
        shared = [module for module in heads if module in left and module in right]
        return tuple(
            picture(module, heads[module], name, *_cut(left[module], right[module], heads[module], batch, row, labels))
            for module in shared
        )


def worst_heads(heads: Sequence[HeadDrift]) -> dict[str, int]:
    """By module, the head with the largest divergence."""
    found: dict[str, HeadDrift] = {}
    for head in heads:
        if head.module not in found or head.divergence > found[head.module].divergence:
            found[head.module] = head
    return {module: head.head for module, head in found.items()}


@dataclass(slots=True)
class _Sums:
    """Sums over counted queries, by head [5, Hq]: divergence, both entropies, agreement; and how many were counted."""

    totals: NDArray[np.float64] = field(default_factory=lambda: np.zeros((5, 0)))

    def add(self, left: AttentionCall, right: AttentionCall, batch: Tensors) -> None:
        for row in range(left.rows):
            before, after = _same_keys(head_maps(left, row), head_maps(right, row))
            # By head: a query may attend to nothing in one and to something in another.
            counted = _counted(before, batch, row)[None, :] & (before.sum(axis=-1) > 0)
            parts = (
                divergence(before, after),
                entropy(before),
                entropy(after),
                (before.argmax(axis=-1) == after.argmax(axis=-1)) & (after.sum(axis=-1) > 0),
            )
            sums = np.stack([np.where(counted, part, 0).sum(axis=-1) for part in parts] + [counted.sum(axis=-1)])
            self.totals = sums if not self.totals.size else self.totals + sums

    def heads(self, module: str) -> list[HeadDrift]:
        """One entry a head; none where no query counted."""
        return [
            HeadDrift(
                module=module,
                head=index,
                divergence=float(column[0] / column[4]),
                reference_entropy=float(column[1] / column[4]),
                candidate_entropy=float(column[2] / column[4]),
                top1_agreement=float(column[3] / column[4]),
            )
            for index, column in enumerate(self.totals.T)
            if column[4]
        ]


@contextmanager
def _both(
    reference: AttentionSource, candidate: AttentionSource, batch: Tensors, work: Path | None
) -> Iterator[tuple[dict[str, AttentionCall], dict[str, AttentionCall]]]:
    with tempfile.TemporaryDirectory(prefix="attention-", dir=work) as folder:
        place = Path(folder)
        yield reference.calls(batch, place / "reference"), candidate.calls(batch, place / "candidate")


def _why_not(left: AttentionCall | None, right: AttentionCall | None) -> str:
    if left is None or right is None:
        return f"the {'reference' if left is None else 'candidate'} has no attention of this name"
    sizes = [(call.rows, *call.query.shape[1:3]) for call in (left, right)]
    if sizes[0] != sizes[1]:
        return f"the reference has {list(sizes[0])} rows, heads and queries, the candidate {list(sizes[1])}"
    return ""


def _same_keys(left: Map, right: Map) -> tuple[Map, Map]:
    """A buffer of fixed length has keys that nobody attends to behind the others."""
    width = max(left.shape[-1], right.shape[-1])
    padded = [np.pad(each, [(0, 0), (0, 0), (0, width - each.shape[-1])]) for each in (left, right)]
    return padded[0], padded[1]


def _counted(maps: Map, batch: Tensors, row: int) -> NDArray[np.bool_]:
    """Which queries are no padding, [Sq]; all of them where the mask is not about these keys."""
    mask, queries = batch.get(_MASK), maps.shape[1]
    if mask is None or mask.ndim != 2 or not queries <= mask.shape[1] <= maps.shape[2] or row >= len(mask):
        return np.ones(queries, bool)
    return np.asarray(mask[row, mask.shape[1] - queries :] != 0)


def _cut(
    left: AttentionCall, right: AttentionCall, head: int, batch: Tensors, row: int, labels: Sequence[str]
) -> tuple[Map, Map, tuple[str, ...]]:
    """The head's maps of one row, without padded queries and without keys that nobody attends to."""
    before, after = _same_keys(head_maps(left, row), head_maps(right, row))
    queries = _counted(before, batch, row)
    keys = (before[:, queries] + after[:, queries]).sum(axis=(0, 1)) > 0
    said: tuple[Any, ...] = tuple(label for label, kept in zip(labels, keys, strict=False) if kept)
    return before[head][np.ix_(queries, keys)], after[head][np.ix_(queries, keys)], said
