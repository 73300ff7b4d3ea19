"""SegFormer: classes of pixels from four scales."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["segformer"]
NAMES = {
    "segformer-b0-ade": "nvidia/segformer-b0-finetuned-ade-512-512",
}
CONFIGS = {
    "segformer-b0-ade": {
        "model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"], "num_labels": 150,
        "image_size": 512,
    },
}  # fmt: skip

FAMILY = GenericFamily("segformer", CONFIGS)
