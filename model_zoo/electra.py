"""ELECTRA: BERT trained to tell replaced tokens."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["electra"]
NAMES = {
    "electra-base": "google/electra-base-discriminator",
    "electra-small": "google/electra-small-discriminator",
}
CONFIGS = {
    "electra-base": {
        "model_type": "electra", "architectures": ["ElectraModel"], "vocab_size": 30522, "embedding_size": 768,
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
    "electra-small": {
        "model_type": "electra", "architectures": ["ElectraModel"], "vocab_size": 30522, "embedding_size": 128,
        "hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 1024,
    },
}  # fmt: skip

FAMILY = GenericFamily("electra", CONFIGS)
