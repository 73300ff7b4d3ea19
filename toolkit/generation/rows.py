"""The rows of a decoder: how long each is, what may be appended, and which logits answer a step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError
from toolkit.types import DecoderSpec

__all__ = ["Rows", "positions"]


class Rows:
    """What decoders have in common, whatever holds their cache; see `Decoder` in `toolkit.types`.

    Raises UsageError for a limit or a number of rows below 1.
    """

    def __init__(self, spec: DecoderSpec, *, limit: int, rows: int) -> None:
        for name, value in (("limit", limit), ("rows", rows)):
            if value < 1:
                raise UsageError(f"{name} {value} is outside its range", hint="Allowed: 1 or more.")
        self.limit, self.rows = limit, rows
        self._spec = spec

    def start(self, rows: int) -> None:
        """Begin anew with an empty cache. Raises UsageError for more rows than were asked for."""
        if not 1 <= rows <= self.rows:
            raise UsageError(f"{rows} rows", hint=f"Allowed: 1 to {self.rows}.")
        self._lengths = np.zeros(rows, np.int64)

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions. Raises UsageError for rows of several lengths."""
        now = int(self._lengths[0])
        if (self._lengths != now).any() or not 0 <= length <= now:
            raise UsageError(
                f"cannot go back to {length} positions from {self._lengths.tolist()}",
                hint="Rows must be equally long, and at least that long.",
            )
        self._lengths = np.full_like(self._lengths, length)

    def _check(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], every: bool) -> None:
        rows = len(self._lengths)
        fits = tokens.ndim == 2 and lengths.shape == (rows,) and len(tokens) == rows
        if not fits or lengths.min() < 1 or lengths.max() > tokens.shape[1]:
            raise UsageError(
                f"tokens {list(tokens.shape)} with lengths {lengths.tolist()} for {rows} rows",
                hint="Give [rows, n] tokens, of which 1 to n of each row are real.",
            )
        if tokens.min() < 0 or tokens.max() >= self._spec.vocabulary:
            raise UsageError(
                f"token {tokens.min() if tokens.min() < 0 else tokens.max()} is not in the vocabulary",
                hint=f"Allowed: 0 to {self._spec.vocabulary - 1}.",
            )
        if every and self._spec.last_logits:
            raise UsageError(
                "the graph answers the last position's logits only", hint="Export it without --last-logits."
            )
        longest = int((self._lengths + lengths).max())
        if longest > self.limit:
            raise UsageError(
                f"{longest} positions, the cache holds {self.limit}",
                hint=f"Give --context {longest} or more, as far as the model goes.",
            )

    def _answer(self, logits: NDArray[np.float32], lengths: NDArray[np.int64], every: bool) -> NDArray[np.float32]:
        """All logits [rows, S, V], or those after each row's last real token [rows, V]."""
        if every:
            return logits
        answer: NDArray[np.float32] = logits[np.arange(len(logits)), self._last(lengths)]
        return answer

    def _last(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of a step's logits belong to each row's last real token."""
        return np.zeros_like(lengths) if self._spec.last_logits else lengths - 1


def positions(before: NDArray[np.int64], lengths: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Where new tokens stand, [rows, steps], behind `before` positions of each row.

    Padding takes the last real position: tables of positions end at the model's context.
    """
    placed: NDArray[np.int64] = before[:, None] + np.minimum(np.arange(steps), lengths[:, None] - 1)
    return placed
