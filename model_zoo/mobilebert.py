"""MobileBERT: bottlenecks around every layer."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["mobilebert"]
NAMES = {
    "mobilebert": "google/mobilebert-uncased",
}
CONFIGS = {
    "mobilebert": {
        "model_type": "mobilebert", "architectures": ["MobileBertModel"],
    },
}  # fmt: skip

FAMILY = GenericFamily("mobilebert", CONFIGS)
