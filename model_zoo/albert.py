"""ALBERT: one layer's weights for all layers."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["albert"]
NAMES = {
    "albert-base-v2": "albert/albert-base-v2",
}
CONFIGS = {
    "albert-base-v2": {
        "model_type": "albert", "architectures": ["AlbertForMaskedLM"], "vocab_size": 30000, "embedding_size": 128,
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
}  # fmt: skip

FAMILY = GenericFamily("albert", CONFIGS)
