"""DeiT: a ViT with a token for its teacher."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["deit"]
NAMES = {
    "deit-base-distilled": "facebook/deit-base-distilled-patch16-224",
    "deit-tiny-distilled": "facebook/deit-tiny-distilled-patch16-224",
}
CONFIGS = {
    "deit-base-distilled": {
        "model_type": "deit", "architectures": ["DeiTForImageClassificationWithTeacher"], "num_labels": 1000,
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
    "deit-tiny-distilled": {
        "model_type": "deit", "architectures": ["DeiTForImageClassificationWithTeacher"], "num_labels": 1000,
        "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768,
    },
}  # fmt: skip

FAMILY = GenericFamily("deit", CONFIGS)
