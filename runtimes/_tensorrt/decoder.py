"""A language model whose cache stays on the device: a step binds what the last one wrote, and answers logits alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtimes._tensorrt.cache import ConcatCache, DeviceCache
from runtimes._tensorrt.memory import Staging
from runtimes._tensorrt.profile_choice import Shape
from runtimes._tensorrt.program import Program
from toolkit.generation.rows import Rows
from toolkit.generation.session_decoder import cache_inputs, step_feeds
from toolkit.types import DecoderSpec, DeviceMemory

__all__ = ["EngineDecoder"]

_LOGITS = "logits"


class EngineDecoder(Rows):
    """Drives a program whose presents are its pasts with new positions behind; see `Decoder`.

    Columns are aligned as in `SessionDecoder`, whose answers it gives: after a ragged step each row's positions are
    moved to the right end, on the device. Closing it closes the program. Raises UsageError for a limit or a number of
    rows below 1, StageError for inputs without a cache.
    """

    def __init__(self, program: Program, spec: DecoderSpec, *, limit: int, rows: int) -> None:
        super().__init__(spec, limit=limit, rows=rows)
        self.ran_on = program.ran_on
        self._program, memory = program, program.memory
        self._names = {item.name for item in program.inputs}
        self._dtype = np.dtype(next(item.dtype for item in program.outputs if item.name == _LOGITS))
        self._cache: DeviceCache = ConcatCache(memory, cache_inputs(program.inputs, spec), limit=limit)
        self._staging = Staging(memory)
        self.start(rows)

    def start(self, rows: int) -> None:
        """Begin anew with an empty cache. Raises UsageError for more rows than were asked for."""
        super().start(rows)
        self._cache.start(rows)

    def forward(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], *, every: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens and answer logits; see `Decoder.forward`."""
        self._check(tokens, lengths, every)
        shape = self._run(tokens, lengths)
        answer = self._fetched(shape, lengths, every)
        self._cache.advance(tokens.shape[1])
        self._lengths = self._lengths + lengths
        gaps = tokens.shape[1] - lengths
        if gaps.any():
            self._cache.keep(self._cache.columns - gaps - self._lengths, self._lengths)
        return answer

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions. Raises UsageError for rows of several lengths."""
        super().rewind(length)
        self._cache.keep(np.zeros_like(self._lengths), self._lengths)

    def device_memory(self) -> DeviceMemory:
        """What the decoder holds of the device's memory."""
        return self._program.device_memory(self._staging.device_bytes + self._cache.bytes)

    def close(self) -> None:
        """Free cache, buffers and engine; a closed decoder may be closed again."""
        self._cache.close()
        self._staging.close()
        self._program.close()

    def _run(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> Shape:
        """Put the step on the stream; answers the shape of its logits."""
        every = step_feeds(tokens, self._lengths, lengths, self._cache.columns)
        feeds = {name: array for name, array in every.items() if name in self._names}
        shapes = {name: array.shape for name, array in feeds.items()} | self._cache.shapes()
        shape = self._program.shape(shapes)[_LOGITS]
        addresses = {name: self._staging.send(name, array) for name, array in feeds.items()}
        addresses |= self._cache.addresses(tokens.shape[1])
        addresses[_LOGITS] = self._staging.reserve(_LOGITS, self._bytes(shape))
        for name, address in addresses.items():
            self._program.bind(name, address)
        self._program.enqueue()
        return shape

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
