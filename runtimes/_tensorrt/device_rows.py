"""What language models on an engine have in common, whatever form their cache has: steps go in, logits come out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from runtimes._tensorrt.cache import DeviceCache
from runtimes._tensorrt.memory import Staging
from runtimes._tensorrt.profile_choice import Shape
from runtimes._tensorrt.program import Program
from toolkit.generation.rows import Rows
from toolkit.types import DecoderSpec, DeviceMemory

__all__ = ["DeviceRows"]

_LOGITS = "logits"


class DeviceRows(Rows):
    """Runs a program beside a cache on the device, of which nothing but logits comes back.

    Closing it closes cache and program. Raises UsageError for a limit or a number of rows below 1.
    """

    def __init__(self, program: Program, spec: DecoderSpec, cache: DeviceCache, *, limit: int, rows: int) -> None:
        super().__init__(spec, limit=limit, rows=rows)
        self.ran_on = program.ran_on
        self._program, self._held = program, cache
        self._names = {item.name for item in program.inputs}
        self._dtype = np.dtype(next(item.dtype for item in program.outputs if item.name == _LOGITS))
        self._staging = Staging(program.memory)
        self.start(rows)

    def start(self, rows: int) -> None:
        """Begin anew with an empty cache. Raises UsageError for more rows than were asked for."""
        super().start(rows)
        self._held.start(rows)

    def device_memory(self) -> DeviceMemory:
        """What the decoder holds of the device's memory."""
        return self._program.device_memory(self._staging.device_bytes + self._held.bytes)

    def close(self) -> None:
        """Free cache, buffers and engine; a closed decoder may be closed again."""
        self._held.close()
        self._staging.close()
        self._program.close()

    def _shape(self, feeds: Mapping[str, NDArray[np.int64]], caches: Mapping[str, Shape]) -> Shape:
        """Set the shapes of a step's inputs; answers that of its logits."""
        taken = {name: array.shape for name, array in feeds.items() if name in self._names}
        return self._program.shape({**taken, **caches})[_LOGITS]

    def _run(self, feeds: Mapping[str, NDArray[np.int64]], caches: Mapping[str, int], shape: Shape) -> None:
        """Put a step on the stream, with its logits of that shape; `caches` are the addresses of pasts and presents."""
        addresses = {name: self._staging.send(name, array) for name, array in feeds.items() if name in self._names}
        addresses |= {**caches, _LOGITS: self._staging.reserve(_LOGITS, self._bytes(shape))}
        for name, address in addresses.items():
            self._program.bind(name, address)
        self._program.enqueue()

    def _fetched(self, shape: Shape, lengths: NDArray[np.int64], every: bool) -> NDArray[np.float32]:
        """The logits that are asked for: all [rows, S, V], or of each row the last real token's [rows, V]."""
        rows, positions, vocabulary = shape
        wanted = shape if every else (rows, vocabulary)
        self._staging.prepare(_LOGITS, self._bytes(wanted))
        if every:
            self._staging.fetch(_LOGITS, self._bytes(shape))
        else:
            width = self._bytes((vocabulary,))
            for row, last in enumerate(self._last(lengths).tolist()):
                self._staging.fetch(_LOGITS, width, (row * positions + last) * width, row * width)
        self._program.memory.synchronize()
        return self._staging.read(_LOGITS, self._dtype, wanted).astype(np.float32, copy=False)

    def _bytes(self, shape: Shape) -> int:
        return int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
