"""A language model whose cache stays on the device: a step binds what the last one wrote, and answers logits alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtimes._tensorrt.cache import ConcatCache
from runtimes._tensorrt.device_rows import DeviceRows
from runtimes._tensorrt.in_place import InPlaceDecoder
from runtimes._tensorrt.program import Program
from toolkit.generation.session_decoder import cache_inputs, step_feeds
from toolkit.generation.static_cache import has_static_cache
from toolkit.types import Decoder, DecoderSpec

__all__ = ["EngineDecoder", "open_decoder"]


def open_decoder(program: Program, spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
    """The decoder for the form of the program's cache; a program that gets none is closed.

    Raises UsageError for a limit or a number of rows that cannot be, StageError for inputs without a cache.
    """
    form = InPlaceDecoder if has_static_cache(program.inputs) else EngineDecoder
    try:
        return form(program, spec, limit=limit, rows=rows)
    except BaseException:
        program.close()
        raise


class EngineDecoder(DeviceRows):
    """Drives a program whose presents are its pasts with new positions behind; see `Decoder`.

    Columns are aligned as in `SessionDecoder`, whose answers it gives: after a ragged step each row's positions are
    moved to the right end, on the device. Closing it closes the program. Raises UsageError for a limit or a number of
    rows below 1, StageError for inputs without a cache.
    """

    def __init__(self, program: Program, spec: DecoderSpec, *, limit: int, rows: int) -> None:
        self._cache = ConcatCache(program.memory, cache_inputs(program.inputs, spec), limit=limit)
        super().__init__(program, spec, self._cache, limit=limit, rows=rows)

    def forward(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], *, every: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens and answer logits; see `Decoder.forward`."""
        self._check(tokens, lengths, every)
        feeds = step_feeds(tokens, self._lengths, lengths, self._cache.columns)
        shape = self._shape(feeds, self._cache.shapes())
        self._run(feeds, self._cache.addresses(tokens.shape[1]), shape)
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
