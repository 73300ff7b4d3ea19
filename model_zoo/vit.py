"""ViT: image classifiers and encoders of the Vision Transformer."""

from __future__ import annotations

from typing import Any

from transformers import ViTForImageClassification, ViTModel

from model_zoo import _heads, _loading, _vision
from toolkit.errors import UnsupportedError
from toolkit.types import ModelRequest, ModelSpec, TensorSpec

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["vit"]
NAMES = {
    "vit-base": "google/vit-base-patch16-224",
    "vit-large": "google/vit-large-patch16-224",
    "vit-small": "WinKawaks/vit-small-patch16-224",
    "vit-tiny": "WinKawaks/vit-tiny-patch16-224",
}
CONFIGS = {
    "vit-base": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 1000,
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
    "vit-large": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 1000,
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    },
    "vit-small": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 1000,
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536,
    },
    "vit-tiny": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 1000,
        "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768,
    },
}  # fmt: skip


class ViT(_vision.Photographs):
    """`ViTForImageClassification` gives `logits`; the others give the encoder's features."""

    name = "vit"
    configs: dict[str, dict[str, Any]] = CONFIGS
    classifier: type = ViTForImageClassification
    encoder: type = ViTModel
    default_size: int | None = None

    def describe(self, request: ModelRequest) -> ModelSpec:
        """The spec; `last_hidden_state` [batch, tokens, hidden] or `logits` [batch, classes]."""
        config = _loading.request_config(request)
        own = _loading.architecture(request.config, self.encoder.__name__)
        architecture = _heads.chosen(request, own)
        size = _vision.input_size(request, config, self.default_size)
        classifies = architecture == self.classifier.__name__
        if not classifies and architecture not in self._encoders():
            raise UnsupportedError(
                f"a {self.name} model of class '{architecture}' is not supported",
                hint=f"Supported: {self.classifier.__name__}, {', '.join(self._encoders())}.",
            )
        return _vision.vision_spec(
            request,
            family=self.name,
            task="image-classification" if classifies else "features",
            architecture=architecture,
            channels=config.num_channels,
            size=size,
            outputs=self._logits(config) if classifies else self._features(own, config, size),
            labels=_vision.labels_of(config) if classifies else (),
        )

    def load(self, spec: ModelSpec) -> _vision.VisionEncoder:
        """The model, or its encoder where the checkpoint's head is not one that is exported."""
        config = _loading.make_config(_loading.source_config(spec, self.configs))
        names = [item.name for item in spec.outputs]
        if spec.architecture == self.classifier.__name__:
            return _vision.VisionEncoder(_loading.load(self.classifier, spec, config), names)
        return _vision.VisionEncoder(self._load_encoder(spec, config, names), names)

    def _encoders(self) -> tuple[str, ...]:
        return (self.encoder.__name__, "ViTForMaskedImageModeling")

    def _logits(self, config: Any) -> list[TensorSpec]:
        return [TensorSpec("logits", "float32", ("batch", config.num_labels))]

    def _features(self, architecture: str, config: Any, size: tuple[int, int]) -> list[TensorSpec]:
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        tokens = 1 + (size[0] // patch) * (size[1] // patch)
        hidden = TensorSpec("last_hidden_state", "float32", ("batch", tokens, config.hidden_size))
        if not self._pooled(architecture):
            return [hidden]
        width = getattr(config, "pooler_output_size", None) or config.hidden_size
        return [hidden, TensorSpec("pooler_output", "float32", ("batch", width))]

    def _pooled(self, architecture: str) -> bool:
        return architecture == self.encoder.__name__

    def _load_encoder(self, spec: ModelSpec, config: Any, names: list[str]) -> Any:
        pooled = "pooler_output" in names
        ignore = (
            ()
            if pooled
            else ("classifier.", "decoder.", "embeddings.mask_token", "vit.embeddings.mask_token", "pooler.")
        )
        return _loading.load(self.encoder, spec, config, ignore=ignore, add_pooling_layer=pooled)


FAMILY = ViT()
