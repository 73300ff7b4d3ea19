"""A language model's cache in device memory: where each past and present tensor of a step lies.

`DeviceCache` is what all decoders need of it. `ConcatCache` serves graphs whose present is the past with the new
positions appended, `InPlaceCache` those whose nodes write in place, which bind past and present to one address.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtimes._tensorrt.memory import Buffer, Memory
from runtimes._tensorrt.profile_choice import Shape
from toolkit.cache_names import present_of
from toolkit.types import TensorSpec

__all__ = ["ConcatCache", "DeviceCache", "InPlaceCache"]

_FIRST = 64
"""Positions that a buffer is made for at first."""


class DeviceCache(Protocol):
    """Past and present of every layer, [rows, key/value heads, positions, head size] each.

    `bytes` is what the buffers hold.
    """

    @property
    def bytes(self) -> int: ...

    def start(self, rows: int) -> None:
        """Begin anew with an empty past of so many rows."""
        ...

    def close(self) -> None:
        """Free the buffers."""
        ...


@dataclass(frozen=True, slots=True)
class _Layer:
    """One cache tensor: its heads, the bytes of one position of a head, and the two buffers that take turns."""

    heads: int
    width: int
    size: int
    buffers: tuple[Buffer, Buffer]


class ConcatCache:
    """Two buffers a tensor: what a step writes into one, the next reads from there; see `DeviceCache`.

    Buffers grow by doubling up to what `limit` positions need, without a copy: a step writes the whole cache anew.
    """

    def __init__(self, memory: Memory, caches: Sequence[TensorSpec], *, limit: int) -> None:
        self._memory, self._limit = memory, limit
        self._layers = {item.name: _layer(memory, item) for item in caches}
        self._rows = self._columns = self._turn = 0

    @property
    def columns(self) -> int:
        """Positions of the past of the next step."""
        return self._columns

    @property
    def bytes(self) -> int:
        """What the buffers hold together."""
        return sum(buffer.size for layer in self._layers.values() for buffer in layer.buffers)

    def start(self, rows: int) -> None:
        """Begin anew; buffers are kept."""
        self._rows, self._columns = rows, 0

    def shapes(self) -> dict[str, Shape]:
        """The shape of every past tensor in the next step."""
        return {name: (self._rows, layer.heads, self._columns, layer.size) for name, layer in self._layers.items()}

    def addresses(self, steps: int) -> dict[str, int]:
        """Where every past tensor lies and every present one goes in a step of so many tokens.

        Raises StageError where the device has no memory for it; the past is still what it was then.
        """
        placed = {}
        for name, layer in self._layers.items():
            placed[name] = layer.buffers[self._turn].require(self._size(layer, self._columns))
            placed[present_of(name)] = self._grown(layer, self._columns + steps).address
        return placed

    def advance(self, steps: int) -> None:
        """Take the presents of the step for the next one's past."""
        self._columns += steps
        self._turn = 1 - self._turn

    def keep(self, starts: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Of each row r keep `counts[r]` positions from column `starts[r]` on, all rows aligned on the right.

        Copies within the device. Columns that a shorter row leaves are zeros.
        """
        columns = int(counts.max())
        for layer in self._layers.values():
            target = self._grown(layer, columns)
            if counts.min() < columns:
                self._memory.clear(target.address, self._size(layer, columns))
            for row, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
                self._move(layer, row, start, count, columns)
        self._columns, self._turn = columns, 1 - self._turn

    def close(self) -> None:
        """See `DeviceCache`."""
        for layer in self._layers.values():
            for buffer in layer.buffers:
                buffer.close()

    def _move(self, layer: _Layer, row: int, start: int, count: int, columns: int) -> None:
        """Copy one row's positions, of every head, to the right end of `columns`."""
        source, target = layer.buffers[self._turn], layer.buffers[1 - self._turn]
        pitch, wide = self._columns * layer.width, columns * layer.width
        begin = source.address + row * layer.heads * pitch + start * layer.width
        end = target.address + row * layer.heads * wide + (columns - count) * layer.width
        if count:
            self._memory.copy_rows(end, wide, begin, pitch, count * layer.width, layer.heads)

    def _grown(self, layer: _Layer, columns: int) -> Buffer:
        """The buffer that is written next, large enough for so many positions."""
        most = self._size(layer, self._limit)
        buffer = layer.buffers[1 - self._turn]
        buffer.require(max(self._size(layer, columns), min(self._size(layer, _FIRST), most)), most)
        return buffer

    def _size(self, layer: _Layer, columns: int) -> int:
        return self._rows * layer.heads * columns * layer.width


class InPlaceCache:
    """One buffer a tensor, [rows, heads, length, size], allocated and zeroed once; see `DeviceCache`.

    `length` is the engine's own, and all that `rows` need is there from the first step on. Nothing has to begin anew:
    what a mask hides is never read, as long as it is finite.
    """

    def __init__(self, memory: Memory, caches: Sequence[TensorSpec], *, rows: int) -> None:
        self._memory = memory
        self._shapes = {item.name: _fixed(item) for item in caches}
        self._widths = {
            item.name: math.prod(self._shapes[item.name]) * np.dtype(item.dtype).itemsize for item in caches
        }
        self._buffers = {item.name: Buffer(memory.allocate, memory.free) for item in caches}
        self._rows, self._zeroed = rows, False
        self.length = min(length for _, length, _ in self._shapes.values())

    @property
    def bytes(self) -> int:
        """What the buffers hold together."""
        return sum(buffer.size for buffer in self._buffers.values())

    def start(self, rows: int) -> None:
        """See `DeviceCache`."""

    def shapes(self, rows: int) -> dict[str, Shape]:
        """The shape of every past tensor in a step of so many rows."""
        return {name: (rows, *shape) for name, shape in self._shapes.items()}

    def addresses(self, first: int) -> dict[str, int]:
        """Where every past tensor and its present lie, from row `first` on.

        Raises StageError where the device has no memory for them.
        """
        if not self._zeroed:
            self._make()
        begins = {name: buffer.address + first * self._widths[name] for name, buffer in self._buffers.items()}
        return begins | {present_of(name): address for name, address in begins.items()}

    def close(self) -> None:
        """See `DeviceCache`."""
        for buffer in self._buffers.values():
            buffer.close()
        self._zeroed = False

    def _make(self) -> None:
        """Zeros, since fresh memory may hold NaN, and 0 times NaN is NaN where a masked place is weighed."""
        for name, buffer in self._buffers.items():
            size = self._rows * self._widths[name]
            self._memory.clear(buffer.require(size), size)
        self._zeroed = True


def _layer(memory: Memory, item: TensorSpec) -> _Layer:
    _, heads, _, size = (int(value) if isinstance(value, int) else 0 for value in item.shape)
    buffers = Buffer(memory.allocate, memory.free), Buffer(memory.allocate, memory.free)
    return _Layer(heads, size * np.dtype(item.dtype).itemsize, size, buffers)


def _fixed(item: TensorSpec) -> tuple[int, int, int]:
    """Heads, length and head size of a buffer, which TensorRT demands to be fixed."""
    _, heads, length, size = item.shape
    return int(heads), int(length), int(size)
