"""CLIP: its image and its text tower with their projections, and either tower by itself."""

from __future__ import annotations

from model_zoo._dual import DualFamily, Tower

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES", "TASKS"]

MODEL_TYPES = ["clip", "clip_vision_model", "clip_text_model"]
NAMES = {
    "clip-vit-base-patch32-vision": "openai/clip-vit-base-patch32",
    "clip-vit-base-patch32-text": "openai/clip-vit-base-patch32",
}
TASKS = {
    "clip-vit-base-patch32-vision": "image-embedding",
    "clip-vit-base-patch32-text": "text-embedding",
}
CONFIGS = {
    "clip-vit-base-patch32-vision": {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 512,
        "vision_config": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "image_size": 224, "patch_size": 32,
        },
    },
    "clip-vit-base-patch32-text": {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 512,
        "text_config": {
            "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
            "vocab_size": 49408, "max_position_embeddings": 77,
        },
    },
}  # fmt: skip

FAMILY = DualFamily(
    "clip",
    CONFIGS,
    towers={
        "image-embedding": Tower("vision_model", "CLIPVisionModelWithProjection", "image_embeds"),
        "text-embedding": Tower("text_model", "CLIPTextModelWithProjection", "text_embeds"),
    },
)
