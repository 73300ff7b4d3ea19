"""From uint8 pixels to a vision model's input, as a graph of standard operators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.processing import Processing
from toolkit.types import ModelSpec

__all__ = ["preprocessing"]


def preprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """`image` uint8 [height, width, channels] to the model's input [1, C, H, W]."""
    return Processing(reason="image graphs are not made yet")
