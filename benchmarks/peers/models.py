"""What is raced: models, and the columns of the table, which are shapes that a model is run in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

__all__ = ["COLUMNS", "MODELS", "Column", "Model"]


@dataclass(frozen=True, slots=True)
class Model:
    """`name` and `weights` as `toolkit export` takes them.

    `embedding` says what two contenders are compared by: the `mean` over attended tokens, normalised, the `cls` token
    or the `logits`. Of a `judged` model the drift on held-out data is in the table, under `title`.
    """

    name: str
    title: str
    embedding: str
    weights: Literal["pretrained", "random"] = "pretrained"
    judged: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A model at sizes of its dynamic dimensions; one that is `optional` is raced only when it is asked for."""

    title: str
    model: str
    sizes: Mapping[str, int]
    optional: bool = False


_FETCHED = Path(platformdirs.user_cache_dir("transformer-export-toolkit")) / "models"
"""Where `scripts/fetch_models.py` puts the two models with trained weights."""

MODELS = {
    "minilm": Model("all-minilm-l6-v2", "MiniLM", "mean", judged=True),
    "bert-base": Model("bert-base", "BERT-base", "cls", weights="random"),
    "vit-s": Model(str(_FETCHED / "dinov2-small-focus"), "DINOv2 ViT-S", "cls", judged=True),
    "vit-base": Model("vit-base", "ViT-base", "logits", weights="random"),
}
COLUMNS = {
    "minilm-1x128": Column("MiniLM 1x128", "minilm", {"batch": 1, "sequence": 128}),
    "minilm-8x128": Column("MiniLM 8x128", "minilm", {"batch": 8, "sequence": 128}),
    "bert-1x128": Column("BERT-base 1x128", "bert-base", {"batch": 1, "sequence": 128}),
    "bert-1x512": Column("BERT-base 1x512", "bert-base", {"batch": 1, "sequence": 512}),
    "vit-s-b1": Column("DINOv2 ViT-S b1", "vit-s", {"batch": 1}),
    "vit-base-b1": Column("ViT-base b1", "vit-base", {"batch": 1}),
    "vit-base-b8": Column("ViT-base b8", "vit-base", {"batch": 8}, optional=True),
}
