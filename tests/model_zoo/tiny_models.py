"""Tiny real models saved as Hugging Face folders, with seeded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, PreTrainedModel, ViTConfig, ViTModel

BERT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 48,
}
VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}


def save(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def bert(folder: Path, cls: Any = BertModel, **options: Any) -> Path:
    torch.manual_seed(0)
    return save(cls(BertConfig(**{**BERT, **options})), folder)


def vit(folder: Path, cls: Any = ViTModel, **options: Any) -> Path:
    torch.manual_seed(0)
    return save(cls(ViTConfig(**{**VIT, **options})), folder)


def dinov2(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    config = {key: value for key, value in VIT.items() if key != "intermediate_size"}
    return save(Dinov2Model(Dinov2Config(**{**config, **options})), folder)


def sentence_encoder(folder: Path, mode: str = "pooling_mode_mean_tokens", *, normalize: bool = True) -> Path:
    bert(folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")] + ([("Normalize", "2_Normalize")] if normalize else [])
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, mode: True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder
