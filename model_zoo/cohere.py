"""Cohere Command R: parallel blocks, interleaved rotary embedding, scaled logits."""

from __future__ import annotations

from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["cohere", "cohere2"]
NAMES = {
    "command-r7b": "CohereLabs/c4ai-command-r7b-12-2024",
}
CONFIGS = {
    "command-r7b": {
        "model_type": "cohere2", "architectures": ["Cohere2ForCausalLM"], "vocab_size": 256000,
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "max_position_embeddings": 132096, "sliding_window": 4096,
        "logit_scale": 0.25, "bos_token_id": 5, "eos_token_id": 255001, "pad_token_id": 0,
    },
}  # fmt: skip

FAMILY = CausalFamily("cohere", CONFIGS)
