"""StableLM: partial rotary embedding and layer norms."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["stablelm"]
NAMES = {
    "stablelm-2-1.6b": "stabilityai/stablelm-2-1_6b",
}
CONFIGS = {
    "stablelm-2-1.6b": {
        "model_type": "stablelm", "architectures": ["StableLmForCausalLM"], "vocab_size": 100352,
        "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 5632, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25,
        "use_qkv_bias": True, "bos_token_id": 100257, "eos_token_id": 100257,
    },
}  # fmt: skip

FAMILY = CausalFamily("stablelm", CONFIGS)
