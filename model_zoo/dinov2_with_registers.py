"""DINOv2 with register tokens; its position embedding is resized to the input, 224 where no image processor says."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["dinov2_with_registers"]
NAMES = {
    "dinov2-with-registers-base": "facebook/dinov2-with-registers-base",
}
CONFIGS = {
    "dinov2-with-registers-base": {
        "model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"], "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 518, "patch_size": 14,
    },
}  # fmt: skip

FAMILY = GenericFamily("dinov2-with-registers", CONFIGS, default_size=224)
