"""What tests of several runtimes share: exports, which take ten seconds each."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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
