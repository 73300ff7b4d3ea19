"""DINOv2: self-supervised Vision Transformers, as encoders or with a classifier."""

from __future__ import annotations

from typing import Any

from transformers import Dinov2ForImageClassification, Dinov2Model

from model_zoo import _loading
from model_zoo.vit import ViT
from toolkit.types import ModelSpec

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["dinov2"]
NAMES = {
    "dinov2-small": "facebook/dinov2-small",
    "dinov2-base": "facebook/dinov2-base",
    "dinov2-large": "facebook/dinov2-large",
}
CONFIGS = {
    "dinov2-small": {
        "model_type": "dinov2", "architectures": ["Dinov2Model"], "image_size": 518, "patch_size": 14,
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
    },
    "dinov2-base": {
        "model_type": "dinov2", "architectures": ["Dinov2Model"], "image_size": 518, "patch_size": 14,
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    },
    "dinov2-large": {
        "model_type": "dinov2", "architectures": ["Dinov2Model"], "image_size": 518, "patch_size": 14,
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    },
}  # fmt: skip


class Dinov2(ViT):
    """Its position embedding is resized to the input, so the image processor's size counts (224 by default)."""

    name = "dinov2"
    configs: dict[str, dict[str, Any]] = CONFIGS
    classifier: type = Dinov2ForImageClassification
    encoder: type = Dinov2Model
    default_size = 224

    def _encoders(self) -> tuple[str, ...]:
        return (self.encoder.__name__,)

    def _load_encoder(self, spec: ModelSpec, config: Any, names: list[str]) -> Any:
        ignore = () if "pooler_output" in names else ("classifier.",)
        return _loading.load(self.encoder, spec, config, ignore=ignore)


FAMILY = Dinov2()
