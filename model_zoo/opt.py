"""OPT: learned positions."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["opt"]
NAMES = {
    "opt-125m": "facebook/opt-125m",
    "opt-350m": "facebook/opt-350m",
}
CONFIGS = {
    "opt-125m": {
        "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 50272, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072, "max_position_embeddings": 2048,
        "word_embed_proj_dim": 768, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
    },
    "opt-350m": {
        "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 50272, "hidden_size": 1024,
        "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096, "max_position_embeddings": 2048,
        "word_embed_proj_dim": 512, "do_layer_norm_before": False, "bos_token_id": 2, "eos_token_id": 2,
        "pad_token_id": 1,
    },
}  # fmt: skip

FAMILY = CausalFamily("opt", CONFIGS)
