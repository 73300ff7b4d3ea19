"""A language model whose engine writes its cache in place: buffers of full length, one for past and present."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtimes._tensorrt.cache import InPlaceCache
from runtimes._tensorrt.device_rows import DeviceRows
from runtimes._tensorrt.program import Program
from toolkit.errors import UsageError
from toolkit.generation.session_decoder import cache_inputs
from toolkit.generation.static_cache import buffer_feeds
from toolkit.types import DecoderSpec

__all__ = ["InPlaceDecoder"]


class InPlaceDecoder(DeviceRows):
    """Drives a program of `TensorScatter` nodes; see `Decoder`.

    Row r's positions are the first ones of its part of each buffer, whatever the other rows do, so nothing is ever
    moved, and from one single-token step to the next neither a shape nor an address changes. The buffers are as long
    as the engine has them, whatever the limit. Closing it closes the program. Raises UsageError for a limit that the
    buffers do not hold, for a limit or a number of rows below 1, StageError for inputs without a cache.
    """

    def __init__(self, program: Program, spec: DecoderSpec, *, limit: int, rows: int) -> None:
        self._cache = InPlaceCache(program.memory, cache_inputs(program.inputs, spec), rows=rows)
        if limit > self._cache.length:
            raise UsageError(
                f"a cache of {limit} positions, the engine's holds {self._cache.length}",
                hint=f"Give --context {self._cache.length} or less, or export again with a larger "
                "--dim total_sequence.",
            )
        super().__init__(program, spec, self._cache, limit=limit, rows=rows)

    def forward(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], *, every: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens and answer logits; see `Decoder.forward`.

        An engine whose smallest batch is above 1 raises UsageError where padding reaches beyond the buffers' end.
        """
        self._check(tokens, lengths, every)
        if int(self._lengths.max()) + tokens.shape[1] <= self._cache.length:
            answer = self._step(tokens, lengths, every, 0)
        else:
            answer = self._one_by_one(tokens, lengths, every)
        self._lengths = self._lengths + lengths
        return answer

    def _one_by_one(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], every: bool) -> NDArray[np.float32]:
        """Rows of which one has no place for its padding, each without it."""
        rows = []
        for row, real in enumerate(lengths.tolist()):
            answer = self._step(tokens[row : row + 1, :real], lengths[row : row + 1], every, row)
            padding = ((0, 0), (0, tokens.shape[1] - real), (0, 0)) if every else ((0, 0), (0, 0))
            rows.append(np.pad(answer, padding))
        return np.concatenate(rows)

    def _step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], every: bool, first: int
    ) -> NDArray[np.float32]:
        """The logits of the rows from `first` on."""
        before = self._lengths[first : first + len(tokens)]
        feeds = buffer_feeds(tokens, before, lengths, self._cache.length)
        shape = self._shape(feeds, self._cache.shapes(len(tokens)))
        self._run(feeds, self._cache.addresses(first), shape)
        return self._fetched(shape, lengths, every)
