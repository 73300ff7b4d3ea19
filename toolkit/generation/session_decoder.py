"""A `Decoder` over any session whose graph has the canonical names: the cache goes out and comes back in.

Slower than a runtime's own decoder, which keeps the cache in place, and simple enough to be the reference for it.

Columns of the cache are aligned on the right once a ragged batch is in: row r of n positions has its past in the
last n columns, so its next token stands right behind it. Graphs that measure distances by column, as sliding
windows and ALiBi do, then measure the right ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.cache_names import is_past, present_of
from toolkit.errors import StageError
from toolkit.generation.rows import Rows, positions
from toolkit.types import DecoderSpec, Session, TensorSpec

__all__ = ["SessionDecoder", "cache_inputs", "step_feeds"]


class SessionDecoder(Rows):
    """Drives a session with inputs `input_ids`, `attention_mask`, `position_ids` and `past_key_values.N.key|value`.

    `inputs` are the model's own, which say what the cache's heads, sizes and dtypes are; of the first three, only
    those among them are fed. Closing the decoder closes the session. Raises UsageError for a limit or a number of
    rows that cannot be, StageError for inputs without a cache.
    """

    def __init__(
        self, session: Session, inputs: Sequence[TensorSpec], spec: DecoderSpec, *, limit: int, rows: int
    ) -> None:
        super().__init__(spec, limit=limit, rows=rows)
        self.ran_on = session.ran_on
        self._session = session
        self._names = {item.name for item in inputs}
        self._caches = {item.name: item for item in cache_inputs(inputs, spec)}
        self.start(rows)

    def start(self, rows: int) -> None:
        """Begin anew with an empty cache. Raises UsageError for more rows than were asked for."""
        super().start(rows)
        self._past = {name: np.zeros(_empty(item, rows), item.dtype) for name, item in self._caches.items()}

    def forward(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], *, every: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens and answer logits; see `Decoder.forward`."""
        self._check(tokens, lengths, every)
        ragged = bool((lengths != tokens.shape[1]).any())
        logits, self._past = self._run(tokens, lengths)
        self._lengths = self._lengths + lengths
        if ragged:
            gaps = tokens.shape[1] - lengths
            self._past = {name: _realigned(array, self._lengths, gaps) for name, array in self._past.items()}
        return self._answer(logits, lengths, every)

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions. Raises UsageError for rows of several lengths."""
        super().rewind(length)
        self._past = {name: np.ascontiguousarray(array[:, :, :length]) for name, array in self._past.items()}

    def close(self) -> None:
        """Close the session and let the cache go."""
        self._past = {}
        self._session.close()

    def _run(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Logits and presents of tokens behind the past."""
        columns = next(iter(self._past.values())).shape[2]
        feeds = {**step_feeds(tokens, self._lengths, lengths, columns), **self._past}
        outputs = self._session.run({name: array for name, array in feeds.items() if name in self._names})
        presents = {name: outputs[present_of(name)] for name in self._past}
        return outputs["logits"].astype(np.float32, copy=False), presents


def cache_inputs(inputs: Sequence[TensorSpec], spec: DecoderSpec) -> tuple[TensorSpec, ...]:
    """The inputs that are past keys and values, two a layer. Raises StageError for another number of them."""
    caches = tuple(item for item in inputs if is_past(item.name))
    if len(caches) != 2 * spec.layers:
        raise StageError(
            "session", f"the graph has {len(caches)} cache inputs for {spec.layers} layers",
            hint="Export the model again: a decoder's graph has past_key_values.N.key and .value for each layer.",
        )  # fmt: skip
    return caches


def step_feeds(
    tokens: NDArray[np.int64], before: NDArray[np.int64], lengths: NDArray[np.int64], columns: int
) -> dict[str, NDArray[np.int64]]:
    """What goes in beside a cache of P = `columns` positions, all int64.

    Tokens and positions are [rows, S], the mask is [rows, P + S]. Row r has its `before[r]` positions in the last
    columns of the past, and `lengths[r]` new tokens.
    """
    steps = np.arange(tokens.shape[1])
    held = np.arange(columns) >= columns - before[:, None]
    return {
        "input_ids": tokens,
        "attention_mask": np.concatenate([held, steps < lengths[:, None]], axis=1).astype(np.int64),
        "position_ids": positions(before, lengths, tokens.shape[1]),
    }


def _empty(item: TensorSpec, rows: int) -> tuple[int, int, int, int]:
    _, heads, _, size = item.shape
    return rows, int(heads), 0, int(size)


def _realigned(present: NDArray[Any], lengths: NDArray[np.int64], gaps: NDArray[np.int64]) -> NDArray[Any]:
    """Move each row's columns, `lengths` long and `gaps` before the end, to the right; cut what no row needs."""
    ends = present.shape[2] - gaps
    spans = enumerate(zip(ends - lengths, ends, strict=True))
    return _joined([present[row : row + 1, :, start:end] for row, (start, end) in spans])


def _joined(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows [1, heads, n, size] of several lengths as one array, aligned on the right, zeros before."""
    width = max(row.shape[2] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, 0), (width - row.shape[2], 0), (0, 0))) for row in rows])
