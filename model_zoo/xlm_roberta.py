"""XLM-R, and the multilingual sentence encoders on it."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES", "POOLING"]

MODEL_TYPES = ["xlm-roberta"]
NAMES = {
    "xlm-roberta-base": "FacebookAI/xlm-roberta-base",
    "multilingual-e5-base": "intfloat/multilingual-e5-base",
}
CONFIGS = {
    "xlm-roberta-base": {
        "model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"], "vocab_size": 250002,
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0,
        "eos_token_id": 2, "layer_norm_eps": 1e-5,
    },
    "multilingual-e5-base": {
        "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "vocab_size": 250002, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0,
        "eos_token_id": 2, "layer_norm_eps": 1e-5,
    },
}  # fmt: skip
POOLING = {"multilingual-e5-base": ("mean", True)}

FAMILY = GenericFamily("xlm-roberta", CONFIGS, pooling=POOLING)
