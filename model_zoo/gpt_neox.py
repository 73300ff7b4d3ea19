"""GPT-NeoX and Pythia: parallel blocks, partial rotary embedding."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["gpt_neox"]
NAMES = {
    "pythia-70m": "EleutherAI/pythia-70m",
    "pythia-410m": "EleutherAI/pythia-410m",
}
CONFIGS = {
    "pythia-70m": {
        "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "vocab_size": 50304,
        "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048,
        "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0,
    },
    "pythia-410m": {
        "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "vocab_size": 50304,
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0,
    },
}  # fmt: skip

FAMILY = CausalFamily("gpt-neox", CONFIGS)
