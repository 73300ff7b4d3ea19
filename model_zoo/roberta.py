"""RoBERTa, and CamemBERT's relatives that kept its model type."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["roberta"]
NAMES = {
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
}
CONFIGS = {
    "roberta-base": {
        "model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "vocab_size": 50265, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0,
        "eos_token_id": 2, "layer_norm_eps": 1e-5,
    },
    "roberta-large": {
        "model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "vocab_size": 50265, "hidden_size": 1024,
        "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0,
        "eos_token_id": 2, "layer_norm_eps": 1e-5,
    },
}  # fmt: skip

FAMILY = GenericFamily("roberta", CONFIGS)
