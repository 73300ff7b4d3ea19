"""Graphs whose cache is a buffer of full length, seen as those whose cache grows.

A past of P positions lies in the first P places of the buffer and new tokens are written behind it, which is where the
grown cache has them: masks, windows and distances mean the same, and the answers are equal. So whatever is written for
the canonical graph (golden inputs, drift, `SessionDecoder`) runs on either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.cache_names import ATTENTION_MASK, WRITE_INDICES, is_past, is_present
from toolkit.errors import UsageError
from toolkit.generation.rows import positions
from toolkit.types import DeviceMemory, OnDevice, Session, Tensors, TensorSpec

__all__ = ["GrowingSession", "SpecifiedSession", "buffer_feeds", "growing", "has_static_cache"]

_IDS = "input_ids"
_LENGTH_AXIS = 2
_PAST, _TOTAL = "past_sequence", "total_sequence"


class SpecifiedSession(Session, Protocol):
    """A session that knows what its graph or engine takes."""

    inputs: tuple[TensorSpec, ...]


def has_static_cache(inputs: Sequence[TensorSpec]) -> bool:
    """Whether the cache is a buffer of full length: only then is there a place to write at."""
    return any(item.name == WRITE_INDICES for item in inputs)


def growing(session: SpecifiedSession) -> SpecifiedSession:
    """The session behind the canonical interface: itself, or a `GrowingSession` around it."""
    if not has_static_cache(session.inputs):
        return session
    return _GrowingOnDevice(session, session) if isinstance(session, OnDevice) else GrowingSession(session)


def buffer_feeds(
    tokens: NDArray[np.int64], before: NDArray[np.int64], lengths: NDArray[np.int64], length: int
) -> dict[str, NDArray[np.int64]]:
    """What goes in beside buffers of `length` places, all int64; row r's positions are its first `before[r]` places.

    Tokens and positions are [rows, S], of which `lengths[r]` are real. The mask, [rows, length], has each place that
    holds something once the new tokens are in; `write_indices` [rows] is where they go.
    """
    filled = np.arange(length) < (before + lengths)[:, None]
    return {
        _IDS: np.ascontiguousarray(tokens, np.int64),
        ATTENTION_MASK: filled.astype(np.int64),
        "position_ids": positions(before, lengths, tokens.shape[1]),
        WRITE_INDICES: before.copy(),
    }


class GrowingSession:
    """Takes pasts of any length, float32 [B, Hkv, P, D], and a mask [B, P + S]; answers presents [B, Hkv, P + S, D].

    Everything is copied into buffers made for each call, so it is for checking, not for speed.
    Closing it closes the session.
    """

    def __init__(self, session: SpecifiedSession) -> None:
        self.ran_on = session.ran_on
        self.inputs = tuple(_canonical(item) for item in session.inputs if item.name != WRITE_INDICES)
        self._session = session
        self._caches = [item for item in session.inputs if is_past(item.name)]

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name, presents in float32.

        Raises UsageError for a missing input, for more positions than the buffer holds, and as the session does.
        """
        rows, past, total = self._sizes(inputs)
        length = self._length(total)
        feeds: dict[str, NDArray[Any]] = {name: np.asarray(array) for name, array in inputs.items()}
        feeds |= {
            item.name: _padded(feeds[item.name].astype(item.dtype), _LENGTH_AXIS, length) for item in self._caches
        }
        feeds[WRITE_INDICES] = np.full(rows, past, np.int64)
        if ATTENTION_MASK in feeds:
            feeds[ATTENTION_MASK] = _padded(feeds[ATTENTION_MASK], 1, length)
        outputs = self._session.run(feeds)
        return {name: _grown(array, total) if is_present(name) else array for name, array in outputs.items()}

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def _sizes(self, inputs: Tensors) -> tuple[int, int, int]:
        """Rows, positions of the past, and of past and new tokens together."""
        missing = [item.name for item in self.inputs if item.name not in inputs]
        if missing:
            raise UsageError(f"wrong input names (missing: {', '.join(missing)})", hint=self._takes())
        shapes = {inputs[item.name].shape for item in self._caches}
        past, new = min(shapes)[_LENGTH_AXIS], inputs[_IDS].shape[-1]
        mask = inputs.get(ATTENTION_MASK)
        if {shape[_LENGTH_AXIS] for shape in shapes} != {past} or (mask is not None and mask.shape[-1] != past + new):
            raise UsageError(f"{new} new tokens, pasts and {ATTENTION_MASK} are of several lengths", hint=self._takes())
        return min(shapes)[0], past, past + new

    def _takes(self) -> str:
        return f"It takes: {', '.join(item.name for item in self.inputs)}."

    def _length(self, total: int) -> int:
        """How long a buffer to make: as the graph has it, or what is needed where it leaves that open."""
        fixed = self._caches[0].shape[_LENGTH_AXIS]
        if not isinstance(fixed, int):
            return total
        if total > fixed:
            raise UsageError(
                f"{total} positions, the cache holds {fixed}",
                hint=f"Give {fixed} tokens at most, or export again with a larger --dim total_sequence.",
            )
        return fixed


class _GrowingOnDevice(GrowingSession):
    """The same over a session whose work lies in a device's own memory."""

    def __init__(self, session: SpecifiedSession, device: OnDevice) -> None:
        super().__init__(session)
        self._device = device

    def device_memory(self) -> DeviceMemory:
        """What the session holds of it."""
        return self._device.device_memory()


def _canonical(item: TensorSpec) -> TensorSpec:
    if is_past(item.name):
        return TensorSpec(item.name, "float32", (*item.shape[:_LENGTH_AXIS], _PAST, *item.shape[_LENGTH_AXIS + 1 :]))
    return TensorSpec(item.name, item.dtype, (item.shape[0], _TOTAL)) if item.name == ATTENTION_MASK else item


def _padded(array: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    widths = [(0, length - size if index == axis else 0) for index, size in enumerate(array.shape)]
    return np.pad(array, widths)


def _grown(present: NDArray[Any], total: int) -> NDArray[Any]:
    return np.ascontiguousarray(present[:, :, :total], np.float32)
