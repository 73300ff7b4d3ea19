"""Models of two towers, one for images and one for texts, whose vectors are compared: each tower is a model here."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from model_zoo import _loading, _text, _vision
from model_zoo._generic import GenericFamily
from model_zoo._skeleton import skeleton
from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import Dim, ModelRequest, ModelSpec, TensorSpec

__all__ = ["DualFamily", "Tower"]


@dataclass(frozen=True, slots=True)
class Tower:
    """One side: the part of the configuration that describes it, its class, and the output with its vector.

    `fixed` says that texts are always padded to the longest that the tower takes, and no mask is read.
    """

    part: str
    architecture: str
    output: str
    fixed: bool = False


@dataclass(frozen=True)
class DualFamily(GenericFamily):
    """`towers` by task: `image-embedding` and `text-embedding`. A tower saved by itself is also an encoder."""

    towers: Mapping[str, Tower] = field(default_factory=dict)

    def describe(self, request: ModelRequest) -> ModelSpec:
        """The spec of the tower that the task names: `embedding` [batch, width], of length 1."""
        own = _loading.architecture(request.config, "Model")
        task = request.task or self._projected(own)
        tower = self.towers.get(task)
        # A classifier on the image tower has the model type of both.
        dual = request.config.get("model_type") == self.name and own.endswith("Model")
        if tower is None and dual:
            hint = f"Give --task {' or --task '.join(self.towers)}."
            if request.task:
                raise UnsupportedError(f"no task '{request.task}' for {request.name}", hint=hint)
            raise UsageError(f"{request.name} is two models, one for images and one for texts", hint=hint)
        if tower is None or not (dual or _is_part(request.config, tower)):
            return super().describe(request)
        config = _config_of(_loading.request_config(request), tower)
        width = _width(tower, config)
        if task == "image-embedding":
            return self._images(request, tower, config, width)
        return self._texts(request, tower, config, width)

    def load(self, spec: ModelSpec) -> nn.Module:
        """The tower with its projection; the other tower's weights may lie beside its own."""
        if spec.task != "embedding":
            return super().load(spec)
        tower = self._tower(spec)
        whole = _loading.make_config(_loading.source_config(spec, self.configs))
        config, cls = _config_of(whole, tower), getattr(transformers, tower.architecture)
        others = tuple(f"{side}." for side in ("text_model", "vision_model") if side != tower.part)
        ignore = ("logit_scale", "logit_bias", "text_projection.", "visual_projection.", *others)
        model = self._adapted(_loading.load(cls, spec, config, ignore=ignore))
        return (ImageTower if spec.kind == "vision" else TextTower)(model, tower.output)

    def _projected(self, own: str) -> str:
        """The task of a tower that was saved by itself with its projection."""
        tasks = (task for task, tower in self.towers.items() if tower.architecture == own and "Projection" in own)
        return next(tasks, "")

    def _tower(self, spec: ModelSpec) -> Tower:
        return self.towers["image-embedding" if spec.kind == "vision" else "text-embedding"]

    def _images(self, request: ModelRequest, tower: Tower, config: Any, width: int) -> ModelSpec:
        return _vision.vision_spec(
            request,
            family=self.name,
            task="embedding",
            architecture=tower.architecture,
            channels=config.num_channels,
            size=_vision.input_size(request, config),
            outputs=[TensorSpec("embedding", "float32", ("batch", width))],
        )

    def _texts(self, request: ModelRequest, tower: Tower, config: Any, width: int) -> ModelSpec:
        longest = int(config.max_position_embeddings)
        whole = Dim(longest, longest, longest)
        if tower.fixed and request.dims.get("sequence", whole) != whole:
            raise UsageError(
                f"the texts of {request.name} are always padded to {longest} tokens",
                hint="Leave --dim sequence out: its vector is read from the last position.",
            )
        if tower.fixed:
            request = replace(request, dims={**request.dims, "sequence": whole})
        return _text.text_spec(
            request,
            family=self.name,
            task="embedding",
            architecture=tower.architecture,
            names=["input_ids"] if tower.fixed else ["input_ids", "attention_mask"],
            outputs=[TensorSpec("embedding", "float32", ("batch", width))],
            longest=longest,
        )

    def _vocabulary(self, spec: ModelSpec) -> int:
        values = _loading.source_config(spec, self.configs)
        if values.get("model_type") != self.name:
            return super()._vocabulary(spec)
        return int(_config_of(_loading.make_config(values), self._tower(spec)).vocab_size)


class _Normalised(nn.Module):
    """A tower whose vector, one of its outputs, is brought to length 1."""

    def __init__(self, model: PreTrainedModel, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.train(model.training)

    def _embedding(self, **inputs: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return {"embedding": normalize(getattr(self.model(**inputs), self.output), dim=-1)}


class ImageTower(_Normalised):
    """float32 [batch, C, H, W] to `embedding` [batch, width], of length 1."""

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """`embedding` [batch, width]."""
        return self._embedding(pixel_values=pixel_values)


class TextTower(_Normalised):
    """int64 [batch, sequence] to `embedding` [batch, width], of length 1; no mask where texts have a fixed length."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """`embedding` [batch, width]."""
        return self._embedding(input_ids=input_ids, attention_mask=attention_mask)


def _is_part(config: Mapping[str, Any], tower: Tower) -> bool:
    """Whether the configuration is that of the tower by itself."""
    return str(config.get("model_type")).endswith(tower.part)


def _config_of(config: Any, tower: Tower) -> Any:
    """The tower's own configuration; the whole model's says how wide the projection is."""
    own = getattr(config, tower.part.replace("_model", "_config"), None)
    if own is None:
        return config
    own = deepcopy(own)
    if hasattr(config, "projection_dim"):
        own.projection_dim = config.projection_dim
    return own


def _width(tower: Tower, config: Any) -> int:
    """How long the vector is: its last layer's outputs, found without weights."""
    if "Projection" in tower.architecture:
        return int(config.projection_dim)
    model = skeleton(getattr(transformers, tower.architecture), config)
    head = getattr(model, "head", None) or getattr(getattr(model, tower.part, None), "head", None)
    return int(head.out_features) if isinstance(head, nn.Linear) else int(config.hidden_size)
