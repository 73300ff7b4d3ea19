"""The `config.json` of a timm model: which architecture, which classes, and what is done to an image before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_zoo._image_recipe import Recipe
from toolkit.errors import UnsupportedError, UsageError

__all__ = ["Settings", "is_timm", "settings"]

_INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Settings:
    """The architecture's name, timm's `pretrained_cfg`, and arguments of `timm.create_model` beside them."""

    architecture: str
    pretrained: Mapping[str, Any]
    arguments: Mapping[str, Any]

    @property
    def classes(self) -> int:
        """How many classes the head tells apart; 0 for an encoder without a head."""
        return int(self.arguments.get("num_classes", self.pretrained.get("num_classes", 1000)))

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.pretrained.get("input_size") or (3, 224, 224)
        own = self.arguments.get("img_size") or (height, width)
        height, width = (own, own) if isinstance(own, int) else own
        return int(self.arguments.get("in_chans", channels)), int(height), int(width)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' descriptions, else their names, where the file has them."""
        names = self.pretrained.get("label_names") or ()
        if isinstance(names, Mapping):
            names = [names.get(str(index), str(index)) for index in range(self.classes)]
        described = self.pretrained.get("label_descriptions") or {}
        labels = tuple(str(described.get(name, name)) for name in names)
        return labels if len(labels) == self.classes else ()

    def recipe(self) -> Recipe:
        """The steps of timm's `transforms_imagenet_eval`: resize to the size over `crop_pct`, cut out the centre.

        Raises UnsupportedError for other ways to crop.
        """
        given, (_, height, width) = self.pretrained, self.input_size
        share, mode = float(given.get("crop_pct") or 0.875), given.get("crop_mode") or "center"
        interpolation = given.get("interpolation") or "bicubic"
        whole = (math.floor(height / share), math.floor(width / share))
        if mode not in ("center", "squash") or (mode == "center" and height != width) or share > 1:
            raise UnsupportedError(
                f"timm's crop_mode '{mode}' with crop_pct {share} to {height} by {width}",
                hint="Taken: 'squash', and 'center' to a square, with crop_pct up to 1; else give tensors as .npz.",
            )
        if interpolation not in _INTERPOLATIONS:
            raise UnsupportedError(
                f"timm's interpolation '{interpolation}'", hint=f"Taken: {', '.join(_INTERPOLATIONS)}."
            )
        return Recipe(
            resize=whole if mode == "squash" else whole[0],
            resample=_INTERPOLATIONS[interpolation],
            crop=(height, width),
            scale=1 / 255,
            mean=self._per_channel("mean", _IMAGENET_MEAN),
            std=self._per_channel("std", _IMAGENET_STD),
            crop_to_even=True,
        )

    def _per_channel(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        values = tuple(float(value) for value in self.pretrained.get(key) or default)
        return values * self.input_size[0] if len(values) == 1 else values


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether it is a timm model's `config.json`: timm's own names no `model_type`, Transformers' wrapper does."""
    return "architecture" in config and config.get("model_type", "timm_wrapper") == "timm_wrapper"


def settings(config: Mapping[str, Any]) -> Settings:
    """Read the parsed file in either of its layouts: with `pretrained_cfg`, or, as it once was, all in one.

    Raises UsageError where a part of it is not what it must be.
    """
    nested = config.get("pretrained_cfg", config)
    arguments = config.get("model_args") or {}
    if not isinstance(nested, Mapping) or not isinstance(arguments, Mapping):
        raise UsageError("pretrained_cfg and model_args in config.json must be objects", hint="Save the model again.")
    above = {key: config[key] for key in ("num_classes", "label_names", "label_descriptions") if config.get(key)}
    old = {"label_names": config["labels"]} if config.get("labels") else {}
    pretrained = {**nested, **old, **above}
    if "num_classes" in config:
        pretrained["num_classes"] = config["num_classes"]
    return Settings(str(config["architecture"]), pretrained, dict(arguments))
