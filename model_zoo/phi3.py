"""Phi-3: one projection for queries, keys and values, one for gate and up, a sliding window."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["phi3"]
NAMES = {
    "phi-3-mini-4k-instruct": "microsoft/Phi-3-mini-4k-instruct",
}
CONFIGS = {
    "phi-3-mini-4k-instruct": {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "vocab_size": 32064, "hidden_size": 3072,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 8192,
        "max_position_embeddings": 4096, "sliding_window": 2047, "bos_token_id": 1, "eos_token_id": 32000,
        "pad_token_id": 32000,
    },
}  # fmt: skip

FAMILY = CausalFamily("phi3", CONFIGS)
