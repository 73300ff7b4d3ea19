"""A language model whose cache stays in place: past and present of each layer are one buffer, allocated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes._onnxruntime import marks
from runtimes._onnxruntime.session import OrtSession
from toolkit.cache_names import is_past, present_of
from toolkit.errors import UsageError
from toolkit.generation.rows import Rows, positions
from toolkit.generation.session_decoder import SessionDecoder
from toolkit.generation.static_cache import buffer_feeds, has_static_cache
from toolkit.types import Decoder, DecoderSpec, TensorSpec

__all__ = ["OrtDecoder", "open_decoder"]


def open_decoder(session: OrtSession, spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
    """The fastest decoder that the graph allows: in place where its attention keeps the cache, else cache out and in.

    Raises UsageError for a limit beyond the graph's tables of positions, or a limit or rows below 1.
    """
    held = session.metadata.get(marks.POSITIONS)
    if held is not None and limit > int(held):
        raise UsageError(
            f"a cache of {limit} positions, and the graph was lowered for {held}",
            hint=f"Give --context {held} or less, or export again with a larger --dim total_sequence.",
        )
    if session.metadata.get(marks.IN_PLACE) or has_static_cache(session.inputs):
        return OrtDecoder(session, spec, limit=limit, rows=rows)
    return SessionDecoder(session, session.inputs, spec, limit=limit, rows=rows)


class OrtDecoder(Rows):
    """Drives a graph of `GroupQueryAttention` or `TensorScatter` nodes; see `Decoder`. Closing it closes the session.

    Row r's positions are the first ones of its part of each buffer, [rows, Hkv, limit, D], whatever the other rows do.
    Memory that no position has used is not touched. Raises UsageError for a limit or rows below 1.
    """

    def __init__(self, session: OrtSession, spec: DecoderSpec, *, limit: int, rows: int) -> None:
        super().__init__(spec, limit=limit, rows=rows)
        self.ran_on = session.ran_on
        self._session = session
        self._by_row = session.metadata.get(marks.IN_PLACE) == marks.BY_ROW
        # A mask of the whole buffer, where the graph does not itself hide what no position has used.
        self._columns = limit if has_static_cache(session.inputs) else None
        self._logits = next(output for output in session.outputs if output.name == "logits")
        self._names = [item.name for item in session.inputs if not is_past(item.name)]
        self._caches = {item.name: _cache(item, rows, limit) for item in session.inputs if is_past(item.name)}
        self._bound: tuple[int, int, Any] | None = None
        self.start(rows)

    def forward(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], *, every: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens and answer logits; see `Decoder.forward`. Rows of a past may be of several lengths."""
        self._check(tokens, lengths, every)
        if self._goes_at_once(tokens.shape[1], lengths):
            logits = self._run(_Step.of(tokens, self._lengths, lengths, self._columns), 0)
        else:
            logits = self._one_by_one(tokens, lengths)
        self._lengths = self._lengths + lengths
        return self._answer(logits, lengths, every)

    def close(self) -> None:
        """Close the session and free the cache."""
        self._bound = None
        self._caches = {}
        self._session.close()

    def _goes_at_once(self, steps: int, lengths: NDArray[np.int64]) -> bool:
        """Whether all rows fit side by side, with their padding, into one run."""
        longest = int(self._lengths.max())
        simple = longest == 0 or steps == 1 or (len(lengths) == 1 and lengths[0] == steps)
        return longest + steps <= self.limit and (simple or not self._by_row)

    def _one_by_one(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows that cannot go together, each without its padding."""
        rows = []
        for row, real in enumerate(lengths):
            own = slice(row, row + 1)
            step = _Step.of(tokens[own, :real], self._lengths[own], lengths[own], self._columns)
            logits = self._run(step, row)
            missing = 0 if self._spec.last_logits else tokens.shape[1] - int(real)
            rows.append(np.pad(logits, ((0, 0), (0, missing), (0, 0))))
        return np.concatenate(rows)

    def _run(self, step: _Step, first: int) -> NDArray[np.float32]:
        """Logits [rows, S or 1, V] of the rows from `first` on."""
        rows, count = step.input_ids.shape
        binding = self._binding(first, rows)
        for name in self._names:
            binding.bind_cpu_input(name, getattr(step, name))
        shape = (rows, 1 if self._spec.last_logits else count, self._spec.vocabulary)
        logits = np.empty(shape, self._logits.dtype)
        _bind(binding.bind_output, "logits", logits)
        self._session.run_bound(binding)
        return logits.astype(np.float32, copy=False)

    def _binding(self, first: int, rows: int) -> Any:
        """Past and present bound to the same memory, kept as long as the rows stay the same."""
        if self._bound is None or self._bound[:2] != (first, rows):
            binding = self._session.binding()
            for name, whole in self._caches.items():
                part = whole[first : first + rows]
                _bind(binding.bind_input, name, part)
                _bind(binding.bind_output, present_of(name), part)
            self._bound = (first, rows, binding)
        return self._bound[2]

    def _check(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], every: bool) -> None:
        if not self._caches:
            raise UsageError("the decoder is closed", hint="Open it again.")
        super()._check(tokens, lengths, every)


@dataclass(frozen=True, slots=True)
class _Step:
    """What goes in beside the cache, all int64: tokens and positions [rows, S], the mask, and `before` [rows].

    The mask is [rows, longest past + S], of which only a row's sum and its last S columns, which belong to the new
    tokens, matter; or [rows, columns], each place of the buffer that holds something once the new tokens are in.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    write_indices: NDArray[np.int64]

    @classmethod
    def of(
        cls, tokens: NDArray[np.int64], before: NDArray[np.int64], lengths: NDArray[np.int64], columns: int | None
    ) -> _Step:
        if columns is not None:
            return cls(**buffer_feeds(tokens, before, lengths, columns))
        past, steps = np.arange(int(before.max())), np.arange(tokens.shape[1])
        held, new = past < before[:, None], steps < lengths[:, None]
        return cls(
            np.ascontiguousarray(tokens, np.int64),
            np.concatenate([held, new], axis=1).astype(np.int64),
            positions(before, lengths, tokens.shape[1]),
            before.copy(),
        )


def _cache(item: TensorSpec, rows: int, limit: int) -> NDArray[Any]:
    _, heads, _, size = item.shape
    return np.zeros((rows, int(heads), limit, int(size)), item.dtype)


def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
