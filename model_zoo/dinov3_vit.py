"""DINOv3: rotary positions in two dimensions."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["dinov3_vit"]
NAMES = {
    "dinov3-vits16": "facebook/dinov3-vits16-pretrain-lvd1689m",
}
CONFIGS = {
    "dinov3-vits16": {
        "model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"], "hidden_size": 384, "num_hidden_layers": 12,
        "num_attention_heads": 6, "intermediate_size": 1536, "image_size": 224, "num_register_tokens": 4,
    },
}  # fmt: skip

FAMILY = GenericFamily("dinov3-vit", CONFIGS, default_size=224)
