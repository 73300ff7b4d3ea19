"""The graphs before and after a model, made from its own processor's or tokenizer's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_zoo import _answer_graph, _image_graph, _text_graph
from toolkit.processing import Processing
from toolkit.types import ModelSpec

__all__ = ["postprocessing", "preprocessing"]

_TOKENS = "input_ids"


def preprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """From uint8 pixels or texts to the model's inputs; `assets` are the files that the bundle will hold."""
    if spec.kind == "vision":
        return _image_graph.preprocessing(spec, assets)
    if any(item.name == _TOKENS for item in spec.inputs):
        return _text_graph.preprocessing(spec, assets)
    return Processing(reason=f"a model of kind '{spec.kind}' takes raw tensors")


def postprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """From the model's outputs to answers: classes with their shares, normalised embeddings, text."""
    if spec.decoder is not None:
        return _text_graph.postprocessing(spec, assets)
    return _answer_graph.postprocessing(spec)
