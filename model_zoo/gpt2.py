"""GPT-2 and DistilGPT-2."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["gpt2"]
NAMES = {
    "gpt2": "openai-community/gpt2",
    "distilgpt2": "distilbert/distilgpt2",
}
CONFIGS = {
    "gpt2": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024,
        "n_embd": 768, "n_layer": 12, "n_head": 12, "bos_token_id": 50256, "eos_token_id": 50256,
    },
    "distilgpt2": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024,
        "n_embd": 768, "n_layer": 6, "n_head": 12, "bos_token_id": 50256, "eos_token_id": 50256,
    },
}  # fmt: skip

FAMILY = CausalFamily("gpt2", CONFIGS)
