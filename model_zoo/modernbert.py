"""ModernBERT: rotary positions, sliding windows, gated layers."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["modernbert"]
NAMES = {
    "modernbert-base": "answerdotai/ModernBERT-base",
}
CONFIGS = {
    "modernbert-base": {
        "model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "vocab_size": 50368,
        "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152,
    },
}  # fmt: skip

FAMILY = GenericFamily("modernbert", CONFIGS)
