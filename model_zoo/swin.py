"""Swin: attention in shifted windows with a bias of relative positions."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["swin"]
NAMES = {
    "swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
}
CONFIGS = {
    "swin-tiny": {
        "model_type": "swin", "architectures": ["SwinForImageClassification"], "num_labels": 1000,
    },
}  # fmt: skip

FAMILY = GenericFamily("swin", CONFIGS)
