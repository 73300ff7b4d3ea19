"""BERT, and the sentence encoders built on it: MiniLM, BGE, E5, GTE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import BertForSequenceClassification, BertModel

from model_zoo import _heads, _loading, _source, _text, _vision
from model_zoo._calibration import OWN
from model_zoo._generic import GenericFamily
from model_zoo._resolve import needs_no_files
from model_zoo.auto import FAMILY as AUTO
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Evaluation, ModelRequest, ModelSpec, Tensors, TensorSpec

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES", "POOLING"]

MODEL_TYPES = ["bert"]
NAMES = {
    "all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    "all-minilm-l12-v2": "sentence-transformers/all-MiniLM-L12-v2",
    "bert-base": "google-bert/bert-base-uncased",
    "bert-large": "google-bert/bert-large-uncased",
    "bge-base-en-v1.5": "BAAI/bge-base-en-v1.5",
    "bge-small-en-v1.5": "BAAI/bge-small-en-v1.5",
    "e5-base-v2": "intfloat/e5-base-v2",
    "e5-small-v2": "intfloat/e5-small-v2",
    "gte-small": "thenlper/gte-small",
}
CONFIGS = {
    "all-minilm-l6-v2": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522,
        "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    },
    "all-minilm-l12-v2": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522,
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536,
    },
    "bert-base": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522,
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
    "bert-large": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522,
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    },
    "bge-base-en-v1.5": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522,
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
    "bge-small-en-v1.5": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522,
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536,
    },
    "e5-base-v2": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522,
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
    "e5-small-v2": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522,
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536,
    },
    "gte-small": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522,
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536,
    },
}  # fmt: skip
POOLING = {
    "all-minilm-l6-v2": ("mean", True),
    "all-minilm-l12-v2": ("mean", True),
    "bge-base-en-v1.5": ("cls", True),
    "bge-small-en-v1.5": ("cls", True),
    "e5-base-v2": ("mean", True),
    "e5-small-v2": ("mean", True),
    "gte-small": ("mean", True),
}

_HEADS = GenericFamily("bert", CONFIGS)
_FEATURES = {"BertModel": True, "BertForPreTraining": True, "BertForMaskedLM": False}


class Bert:
    """Sentence encoder (with `modules.json`), classifier, or plain encoder; other heads as any family has them.

    A checkpoint of a masked language model is an encoder unless `--task fill-mask` asks for its head.
    """

    def describe(self, request: ModelRequest) -> ModelSpec:
        """The spec; `embedding`, `logits`, or `last_hidden_state` with `pooler_output`."""
        config = _loading.request_config(request)
        architecture = _loading.architecture(request.config, "BertModel")
        pooling = _pooling(request.name, _request_folder(request)) if request.task in ("", "embedding") else None
        if not pooling and not config.is_decoder and _elsewhere(architecture, request.task):
            return _HEADS.describe(request)
        known = pooling or architecture in _FEATURES or architecture == "BertForSequenceClassification"
        if config.is_decoder or not known:
            return AUTO.describe(request)
        task, outputs = _outputs(architecture, config, pooled=pooling is not None)
        return _text.text_spec(
            request,
            family="bert",
            task=task,
            architecture=architecture,
            names=_text.input_names(config),
            outputs=outputs,
            longest=config.max_position_embeddings,
            labels=_vision.labels_of(config) if task == "text-classification" else (),
        )

    def load(self, spec: ModelSpec) -> nn.Module:
        """The encoder with what follows it: pooling, a classifier, or nothing."""
        config = _loading.make_config(_loading.source_config(spec, CONFIGS))
        names = [item.name for item in spec.outputs]
        if spec.task not in ("embedding", "features", "text-classification"):
            return _HEADS.load(spec)
        if spec.task == "text-classification":
            return _text.TextEncoder(_loading.load(BertForSequenceClassification, spec, config), names)
        pooled = "pooler_output" in names
        ignore = ("cls.",) if pooled else ("cls.", "pooler.", "bert.pooler.", "classifier.", "qa_outputs.")
        model = _loading.load(BertModel, spec, config, ignore=ignore, add_pooling_layer=pooled)
        pooling = _pooling(spec.name, _loading.model_folder(spec))
        if spec.task != "embedding" or pooling is None:
            return _text.TextEncoder(model, names)
        return _text.SentenceEncoder(model, *pooling)

    def golden(self, spec: ModelSpec) -> tuple[Tensors, ...]:
        """Passages, tokenized."""
        return _text.golden(spec, _vocabulary(spec))

    def calibration(self, spec: ModelSpec, data: Data = OWN) -> Calibration:
        """Passages: the user's, or the shipped ones."""
        return _text.calibration(spec, data, _vocabulary(spec))

    def evaluation(self, spec: ModelSpec, data: Data = OWN) -> Evaluation | None:
        """Texts: the user's, or for sentence encoders retrieval over held-out passages."""
        return _text.evaluation(spec, _vocabulary(spec), data)

    def assets(self, spec: ModelSpec) -> tuple[Path, ...]:
        """Tokenizer files and the configuration with the class names."""
        return _loading.asset_files(spec)


def _elsewhere(architecture: str, task: str) -> bool:
    """Whether the class or the task is one that this file has no form of its own for."""
    asked = bool(task) and (task != "features" or architecture not in _FEATURES)
    return asked or (architecture not in _FEATURES and _heads.task_of(architecture) in _heads.HEADS)


def _outputs(architecture: str, config: Any, *, pooled: bool) -> tuple[str, list[TensorSpec]]:
    if pooled:
        return "embedding", [TensorSpec("embedding", "float32", ("batch", config.hidden_size))]
    if architecture == "BertForSequenceClassification":
        return "text-classification", [TensorSpec("logits", "float32", ("batch", config.num_labels))]
    hidden = TensorSpec("last_hidden_state", "float32", ("batch", "sequence", config.hidden_size))
    pooler = TensorSpec("pooler_output", "float32", ("batch", config.hidden_size))
    return "features", [hidden, pooler] if _FEATURES[architecture] else [hidden]


def _pooling(name: str, folder: Path | None) -> tuple[str, bool] | None:
    """What `modules.json` says; for a short name without files, what its model card says."""
    if folder is None:
        return POOLING.get(name)
    return _text.pooling_of(folder)


def _request_folder(request: ModelRequest) -> Path | None:
    if needs_no_files(request):
        return None
    return _source.files(request.source, revision=request.revision, offline=request.offline)


def _vocabulary(spec: ModelSpec) -> int:
    return int(_loading.source_config(spec, CONFIGS)["vocab_size"])


FAMILY = Bert()
