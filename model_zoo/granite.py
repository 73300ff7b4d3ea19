"""Granite: Llama with multipliers on embeddings, attention, residuals and logits."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["granite"]
NAMES = {
    "granite-3.3-2b-instruct": "ibm-granite/granite-3.3-2b-instruct",
}
CONFIGS = {
    "granite-3.3-2b-instruct": {
        "model_type": "granite", "architectures": ["GraniteForCausalLM"], "vocab_size": 49159,
        "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015625, "residual_multiplier": 0.22, "logits_scaling": 8.0,
        "rope_theta": 10000000.0, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
        "pad_token_id": 0,
    },
}  # fmt: skip

FAMILY = CausalFamily("granite", CONFIGS)
