"""OLMo 2: normalised queries and keys, norms after the blocks."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["olmo2"]
NAMES = {
    "olmo-2-1b-instruct": "allenai/OLMo-2-0425-1B-Instruct",
}
CONFIGS = {
    "olmo-2-1b-instruct": {
        "model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], "vocab_size": 100352, "hidden_size": 2048,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 8192,
        "max_position_embeddings": 4096, "rope_theta": 500000.0, "eos_token_id": 100257, "pad_token_id": 100277,
    },
}  # fmt: skip

FAMILY = CausalFamily("olmo2", CONFIGS)
