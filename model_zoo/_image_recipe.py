"""What an image processor does, as its `preprocessor_config.json` tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import UnsupportedError

__all__ = ["Recipe", "read_recipe"]

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The steps of an image processor in their order; None leaves a step out. Sizes are (height, width).

    A crop leaves half of the margin before it, rounded down; with `crop_to_even`, to the nearest even number of pixels.
    """

    resize: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    scale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...]
    crop_to_even: bool = False


_SHORTEST: dict[str, Any] = {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViTImageProcessor": {"size": 224, "resample": 2, "image_mean": _HALF, "image_std": _HALF},
    "BitImageProcessor": {**_SHORTEST, "resample": 3, "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD},
    "CLIPImageProcessor": {**_SHORTEST, "resample": 3, "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD},
    "SiglipImageProcessor": {"size": 224, "resample": 3, "image_mean": _HALF, "image_std": _HALF},
    "DeiTImageProcessor": {
        "size": 256,
        "resample": 3,
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": _HALF,
        "image_std": _HALF,
    },
}
_SHORTEST_WHEN_INT = frozenset({"BitImageProcessor", "CLIPImageProcessor"})
_REFUSED = ("crop_pct", "do_pad", "do_flip_channel_order", "do_thumbnail", "offset")


def read_recipe(processor: Mapping[str, Any], channels: int, fallback: tuple[int, int]) -> Recipe:
    """The steps of the parsed file for images of that many channels; of an empty one, those for the size `fallback`.

    Raises UnsupportedError for a processor with steps that are not known here.
    """
    if not processor:
        return Recipe(fallback, 2, None, 1 / 255, (0.5,) * channels, (0.5,) * channels)
    kind = _kind(processor)
    values = {"do_resize": True, "do_rescale": True, "do_normalize": True, **_DEFAULTS.get(kind, {}), **processor}
    _known(kind, values)
    shortest = kind in _SHORTEST_WHEN_INT
    return Recipe(
        resize=_size(values["size"], shortest) if values["do_resize"] else None,
        resample=int(values.get("resample") or 0),
        crop=_pair(values["crop_size"]) if values.get("do_center_crop") else None,
        scale=float(values.get("rescale_factor", 1 / 255)) if values["do_rescale"] else None,
        mean=_per_channel(values["image_mean"], channels) if values["do_normalize"] else None,
        std=_per_channel(values["image_std"], channels) if values["do_normalize"] else (),
    )


def _kind(processor: Mapping[str, Any]) -> str:
    name = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    name = name.replace("FeatureExtractor", "ImageProcessor")
    return name.removesuffix("Pil").removesuffix("Fast")


def _known(kind: str, values: Mapping[str, Any]) -> None:
    """Refuse a processor with steps that are not implemented here, rather than compute something else."""
    odd = [key for key in _REFUSED if values.get(key)]
    needed = ["size", "resample"] if values["do_resize"] else []
    needed += ["image_mean", "image_std"] if values["do_normalize"] else []
    needed += ["crop_size"] if values.get("do_center_crop") else []
    missing = [key for key in needed if values.get(key) is None]
    if odd or missing:
        what = f"uses {', '.join(odd)}" if odd else f"leaves {', '.join(missing)} to its class"
        raise UnsupportedError(
            f"the image processor '{kind}' in preprocessor_config.json {what}",
            hint=f"Taken: {', '.join(_DEFAULTS)}, and others whose file states size, resample, image_mean and "
            "image_std; else give the tensors as .npz.",
        )


def _size(size: Any, shortest: bool) -> tuple[int, int] | int:
    if isinstance(size, int):
        return size if shortest else (size, size)
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return _pair(size)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    raise UnsupportedError(
        f"the size {size} in preprocessor_config.json", hint="Taken: a number, height and width, shortest_edge."
    )


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    values = tuple(float(item) for item in value) if isinstance(value, list | tuple) else (float(value),)
    return values * channels if len(values) == 1 else values
