"""Gemma 1 to 3: scaled embeddings, soft caps, alternating windows, normalised queries."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["gemma", "gemma2", "gemma3_text"]
NAMES = {
    "gemma-2b-it": "google/gemma-2b-it",
    "gemma-2-2b-it": "google/gemma-2-2b-it",
    "gemma-3-270m-it": "google/gemma-3-270m-it",
    "gemma-3-1b-it": "google/gemma-3-1b-it",
}
CONFIGS = {
    "gemma-2b-it": {
        "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "vocab_size": 256000, "hidden_size": 2048,
        "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "intermediate_size": 16384,
        "max_position_embeddings": 8192, "head_dim": 256, "bos_token_id": 2, "eos_token_id": 1,
        "pad_token_id": 0, "tie_word_embeddings": True,
    },
    "gemma-2-2b-it": {
        "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "vocab_size": 256000,
        "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "head_dim": 256, "sliding_window": 4096,
        "query_pre_attn_scalar": 256, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
        "tie_word_embeddings": True,
    },
    "gemma-3-270m-it": {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 262144,
        "hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
        "intermediate_size": 2048, "max_position_embeddings": 32768, "head_dim": 256, "sliding_window": 512,
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
    },
    "gemma-3-1b-it": {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 262144,
        "hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "head_dim": 256, "sliding_window": 512,
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
    },
}  # fmt: skip

FAMILY = CausalFamily("gemma", CONFIGS)
