"""From texts to token ids and back, as graphs of onnxruntime-extensions' tokenizer operators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.processing import Processing
from toolkit.types import ModelSpec

__all__ = ["postprocessing", "preprocessing"]


def preprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """`text` string [batch] to the model's token inputs, int64 [batch, sequence]."""
    return Processing(reason="tokenizer graphs are not made yet")


def postprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """`ids` int64 [tokens] to `text` string [1]."""
    return Processing(reason="tokenizer graphs are not made yet")
