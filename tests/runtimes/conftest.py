"""What tests of several runtimes share: exports, which take ten seconds each, and the compiled kernels."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tiny_decoders import MakeTiny, TinyDecoder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> MakeTiny:
    """Exports a model of `tiny_decoders` at the first call for it."""
    from tiny_decoders import TinyDecoder

    # `cache` would tell an argument that is left out from one that is given.
    made = cache(lambda name, last: TinyDecoder(name, tmp_path_factory.mktemp(name) / "made", last_logits=last))

    def once(name: str, last_logits: bool = False) -> TinyDecoder:
        return made(name, last_logits)

    return once


@pytest.fixture(scope="session")
def kernels() -> Path:
    """The library, compiled once; it is the same file for the fast and for the plain forms."""
    from runtimes._onnxruntime.kernels import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, "portable")
        path = build.library()
        if path is None:
            pytest.skip(build.reason())
        return path


@pytest.fixture(params=["fastest", "portable"])
def linear_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kernels: Path) -> None:
    """Sessions opened in the test take the fastest or the plain form of the Linears of encoders."""
    from runtimes._onnxruntime.kernels import build

    monkeypatch.setenv(build.SWITCH, "" if request.param == "fastest" else request.param)
    if build.instructions(kernels) == "AVX2":
        pytest.skip("with AVX2 alone the function runs")
