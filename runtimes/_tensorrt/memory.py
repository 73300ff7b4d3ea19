"""Memory that outlives a run: buffers that grow and are used again, and the way between host and device.

Nothing here knows CUDA: whoever can allocate and copy serves as `Memory`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Buffer", "Memory", "Staging"]

_ALIGNMENT = 512


class Memory(Protocol):
    """A device's memory, the host's page-locked memory beside it, and copies in the order of one stream.

    Addresses are plain numbers, sizes are in bytes. All but the two `free` raise StageError where the device fails.
    """

    def allocate(self, size: int) -> int:
        """Address of fresh device memory; `size` is at least 1."""
        ...

    def free(self, address: int) -> None:
        """Give device memory back; never raises."""
        ...

    def allocate_pinned(self, size: int) -> int:
        """Address of fresh page-locked host memory; `size` is at least 1."""
        ...

    def free_pinned(self, address: int) -> None:
        """Give page-locked memory back; never raises."""
        ...

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy in the stream's order, between any two of host and device."""
        ...

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        """Copy `height` pieces of `width` bytes, that far apart on either side; both sides are on the device."""
        ...

    def clear(self, address: int, size: int) -> None:
        """Zeros into device memory, in the stream's order."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was asked for is done."""
        ...


class Buffer:
    """One piece of memory that is kept and only ever grows; what it held is lost when it does."""

    def __init__(self, allocate: Callable[[int], int], free: Callable[[int], None]) -> None:
        self._allocate, self._free = allocate, free
        self.address = self.size = 0

    def require(self, size: int, most: int = 0) -> int:
        """The address of at least `size` bytes, and 1.

        It grows to `size`, or to twice what it was if that is no more than `most`: what becomes longer step by step
        is then allocated a few times only.
        """
        if size > self.size or not self.address:
            wanted = _aligned(max(size, min(2 * self.size, most), 1))
            self.close()
            self.address = self._allocate(wanted)
            self.size = wanted
        return self.address

    def close(self) -> None:
        """Free it. It may be required again."""
        if self.address:
            self._free(self.address)
        self.address = self.size = 0


class Staging:
    """A device buffer and a page-locked host buffer for each tensor that goes in or comes out, by name."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._device: dict[str, Buffer] = {}
        self._host: dict[str, Buffer] = {}

    @property
    def device_bytes(self) -> int:
        """What the device buffers hold together."""
        return sum(buffer.size for buffer in self._device.values())

    def reserve(self, name: str, size: int) -> int:
        """The device address of a tensor of that many bytes."""
        return self._buffer(self._device, name).require(size)

    def send(self, name: str, array: NDArray[Any]) -> int:
        """Start to copy the array to the device, and answer where it will be."""
        address = self.reserve(name, array.nbytes)
        if array.nbytes:
            host = self._buffer(self._host, name).require(array.nbytes)
            _view(host, array.nbytes, array.dtype, array.shape)[...] = array
            self._memory.copy(address, host, array.nbytes)
        return address

    def fetch(self, name: str, size: int, start: int = 0, place: int = 0) -> None:
        """Start to copy `size` bytes, from the tensor's byte `start` on, to byte `place` of its host buffer.

        Before the first piece, `prepare` says how many there will be in all.
        """
        if size:
            self._memory.copy(self._host[name].address + place, self._device[name].address + start, size)

    def prepare(self, name: str, size: int) -> None:
        """Make the tensor's host buffer large enough for what will be fetched."""
        self._buffer(self._host, name).require(size)

    def read(self, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """A copy of what was fetched; only after `Memory.synchronize`."""
        wanted = np.dtype(dtype)
        size = wanted.itemsize * int(np.prod(shape, dtype=np.int64))
        if not size:
            return np.empty(shape, wanted)
        return _view(self._host[name].address, size, wanted, shape).copy()

    def close(self) -> None:
        """Free all buffers."""
        for buffer in (*self._device.values(), *self._host.values()):
            buffer.close()

    def _buffer(self, buffers: dict[str, Buffer], name: str) -> Buffer:
        if name not in buffers:
            device, memory = buffers is self._device, self._memory
            pair = (memory.allocate, memory.free) if device else (memory.allocate_pinned, memory.free_pinned)
            buffers[name] = Buffer(*pair)
        return buffers[name]


def _view(address: int, size: int, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Host memory as an array."""
    plain = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    whole: NDArray[Any] = plain.view(np.dtype(dtype)).reshape(shape)
    return whole


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
