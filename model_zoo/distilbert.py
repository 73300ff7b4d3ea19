"""DistilBERT: BERT with half the layers."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["distilbert"]
NAMES = {
    "distilbert-base": "distilbert/distilbert-base-uncased",
    "distilbert-sst2": "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
}
CONFIGS = {
    "distilbert-base": {
        "model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"], "vocab_size": 30522, "dim": 768,
        "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,
    },
    "distilbert-sst2": {
        "model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"], "vocab_size": 30522,
        "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
        "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
    },
}  # fmt: skip

FAMILY = GenericFamily("distilbert", CONFIGS)
