"""The graphs before and after a model, made from its own processor's or tokenizer's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.processing import Processing
from toolkit.types import ModelSpec

__all__ = ["postprocessing", "preprocessing"]


def preprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """From uint8 pixels or texts to the model's inputs; `assets` are the files that the bundle will hold."""
    return Processing(reason=f"a {spec.kind} model takes raw tensors")


def postprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """From the model's outputs to answers: classes with their shares, normalised embeddings, text."""
    return Processing(reason=f"the outputs of task '{spec.task}' are answers as they are")
