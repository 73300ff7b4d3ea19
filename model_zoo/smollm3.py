"""SmolLM3: Llama with no position embedding in every fourth layer."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["smollm3"]
NAMES = {
    "smollm3-3b": "HuggingFaceTB/SmolLM3-3B",
}
CONFIGS = {
    "smollm3-3b": {
        "model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "vocab_size": 128256,
        "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
        "intermediate_size": 11008, "max_position_embeddings": 65536, "rope_theta": 5000000.0,
        "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128012, "pad_token_id": 128004,
    },
}  # fmt: skip

FAMILY = CausalFamily("smollm3", CONFIGS)
