"""A decoder with its cache in device memory, run on host memory, beside the one of ONNX Runtime's CPU provider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from host_program import CONTEXT, LAYERS, VOCABULARY, HostProgram

from runtimes import portable_decoder
from runtimes._tensorrt.decoder import EngineDecoder, open_decoder
from runtimes._tensorrt.in_place import InPlaceDecoder
from toolkit.types import DecoderSpec

SPEC = DecoderSpec(LAYERS, VOCABULARY, CONTEXT)
ROWS = 3


class Pair:
    """Both are given the same tokens."""

    def __init__(self, path: Path, spec: DecoderSpec = SPEC, limit: int = CONTEXT, rows: int = ROWS) -> None:
        self.program, self._vocabulary = HostProgram(path), spec.vocabulary
        device = open_decoder(self.program, spec, limit=limit, rows=rows)
        assert isinstance(device, EngineDecoder | InPlaceDecoder)
        self.device = device
        self.host = portable_decoder(path, spec, limit=limit, rows=rows)

    def start(self, rows: int) -> None:
        self.device.start(rows)
        self.host.start(rows)

    def rewind(self, length: int) -> None:
        self.device.rewind(length)
        self.host.rewind(length)

    def forward(self, steps: int, lengths: list[int], *, every: bool = False, atol: float = 0.0) -> None:
        """What they answer must be the same, to the bit unless `atol` is given."""
        tokens = np.random.default_rng(steps).integers(0, self._vocabulary, (len(lengths), steps))
        got, expected = (one.forward(tokens, np.array(lengths), every=every) for one in (self.device, self.host))
        assert got.dtype == np.float32
        if every:
            # What stands at padding is nobody's.
            real = np.arange(steps) < np.array(lengths)[:, None]
            got, expected = got[real], expected[real]
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)
