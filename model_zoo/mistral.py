"""Mistral: grouped queries and a sliding window."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["mistral"]
NAMES = {
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
    "mistral-7b-v0.1": "mistralai/Mistral-7B-v0.1",
}
CONFIGS = {
    "mistral-7b-instruct": {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "vocab_size": 32768,
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
        "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2,
    },
    "mistral-7b-v0.1": {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "vocab_size": 32000,
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "sliding_window": 4096, "bos_token_id": 1,
        "eos_token_id": 2,
    },
}  # fmt: skip

FAMILY = CausalFamily("mistral", CONFIGS)
