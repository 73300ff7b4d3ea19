"""NomicBERT: rotary positions, gated layers."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES", "POOLING"]

MODEL_TYPES = ["nomic_bert"]
NAMES = {
    "nomic-embed-text-v1.5": "nomic-ai/nomic-embed-text-v1.5",
}
CONFIGS = {
    "nomic-embed-text-v1.5": {
        "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "vocab_size": 30528, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
}  # fmt: skip
# Not normalised: users cut the vector to a shorter one and normalise that.
POOLING = {"nomic-embed-text-v1.5": ("mean", False)}

FAMILY = GenericFamily("nomic-bert", CONFIGS, pooling=POOLING)
