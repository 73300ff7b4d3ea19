"""From image files and texts to input tensors, with numpy, Pillow and tokenizers: what `toolkit run` uses.

The arithmetic follows the image processors of transformers with their Pillow backend, and the tokenizer file.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from toolkit.errors import MissingDependencyError, UnsupportedError, UsageError

__all__ = ["image_size", "images", "in_mode", "longest", "open_image", "prepared", "texts", "token_ids"]

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_ENDLESS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Recipe:
    """The steps of an image processor in their order; None leaves a step out. Sizes are (height, width)."""

    resize: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    scale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...]


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
_REFUSED = ("crop_pct", "do_pad", "do_reduce_labels", "do_flip_channel_order", "do_thumbnail", "offset")


def images(files: Sequence[Path | Image.Image], assets: Path | None, shape: Sequence[int | str]) -> NDArray[np.float32]:
    """Preprocess as `preprocessor_config.json` in `assets` says: float32 [n, C, H, W] for an input of that shape.

    Steps: orientation from EXIF, colour mode by C, resize, centre crop, rescale, normalise. Without the file:
    resize to H by W, values to -1..1. Raises UsageError for a file that is not an image, or a size that does not fit.
    """
    channels, height, width = (int(size) for size in shape[-3:])
    recipe = _recipe(_processor(assets), channels, (height, width))
    if recipe.mean is not None and {len(recipe.mean), len(recipe.std)} != {channels}:
        raise UsageError(
            f"preprocessor_config.json normalises {len(recipe.mean)} channels, the model takes {channels}",
            hint="Give image_mean and image_std one number a channel.",
        )
    arrays = [_apply(recipe, _open(item, channels), channels) for item in files]
    for array in arrays:
        if array.shape != (channels, height, width):
            raise UsageError(
                f"preprocessor_config.json makes images of {array.shape[1]} by {array.shape[2]}, "
                f"the model takes {height} by {width}",
                hint="Correct `size` or `crop_size` in it, or give the tensors as .npz.",
            )
    return np.stack(arrays) if arrays else np.zeros((0, channels, height, width), np.float32)


def image_size(assets: Path | None) -> tuple[int, int] | None:
    """The height and width that `preprocessor_config.json` produces; None without one, or when it is not fixed."""
    processor = _processor(assets)
    if not processor:
        return None
    recipe = _recipe(processor, 3, (0, 0))
    fixed = recipe.crop or recipe.resize
    return fixed if isinstance(fixed, tuple) else None


def open_image(path: Path | str, content: bytes | None = None) -> Image.Image:
    """The decoded image, upright; given its `content`, `path` only says where that is from.

    Raises UsageError that names the file when it is not one.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            image.load()
            return ImageOps.exif_transpose(image) or image
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}", hint="Give an existing image file.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"{path} is not a readable image: {error}", hint="Give a PNG, JPEG, WebP, BMP, GIF or TIFF file."
        ) from error


def texts(
    values: Sequence[str], assets: Path | None, names: Sequence[str], *, max_length: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """Tokenize with `tokenizer.json` (or BERT's `vocab.txt`) in `assets`: int64 [n, longest] for each input name.

    Truncated to `max_length` and to what the tokenizer's configuration allows; padded to the longest.
    Raises UsageError when there is no tokenizer or it lacks what an input needs.
    """
    encodings = prepared(assets, max_length).encode_batch(list(values))
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise UsageError(f"a tokenizer gives no {', '.join(unknown)}", hint="Give the tensors as an .npz file instead.")
    return {name: np.array([getattr(item, columns[name]) for item in encodings], dtype=np.int64) for name in names}


def prepared(assets: Path | None, max_length: int | None) -> Any:
    """The tokenizer in `assets`, set up to truncate and pad as `texts` says. Raises UsageError without one."""
    tokenizer, settings = _tokenizer(assets)
    _prepare(tokenizer, settings, longest(settings, max_length))
    return tokenizer


def token_ids(values: Sequence[str], assets: Path | None) -> list[list[int]]:
    """Token ids of each text, without special tokens, truncation or padding. Raises UsageError without a tokenizer."""
    tokenizer, _ = _tokenizer(assets)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(values), add_special_tokens=False)]


def longest(settings: Mapping[str, Any], max_length: int | None) -> int | None:
    """The shorter of two limits: the caller's, and `model_max_length` where it is a real number."""
    own = settings.get("model_max_length")
    limits = [max_length] if max_length else []
    if isinstance(own, int | float) and own < _ENDLESS:
        limits.append(int(own))
    return min(limits, default=None)


def _open(item: Path | Image.Image, channels: int) -> Image.Image:
    return in_mode(open_image(item) if isinstance(item, Path) else item, channels)


def in_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image in grey, RGB or RGBA, as the number of channels says; 16-bit grey is cut to its upper 8 bits."""
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise UnsupportedError(
            f"images for {channels} channels", hint="Taken: 1 (grey), 3 (RGB), 4 (RGBA); else give an .npz file."
        )
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == modes[channels] else image.convert(modes[channels])


def _apply(recipe: _Recipe, image: Image.Image, channels: int) -> NDArray[np.float32]:
    if recipe.resize is not None:
        height, width = _target(recipe.resize, image.height, image.width)
        image = image.resize((width, height), resample=Image.Resampling(recipe.resample))
    array: NDArray[Any] = np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)
    if recipe.crop is not None:
        array = _center_crop(array, recipe.crop)
    if recipe.scale is not None:
        array = (array.astype(np.float64) * recipe.scale).astype(np.float32)
    array = array.astype(np.float32)
    if recipe.mean is not None:
        mean = np.array(recipe.mean, np.float32).reshape(-1, 1, 1)
        array = (array - mean) / np.array(recipe.std, np.float32).reshape(-1, 1, 1)
    return np.ascontiguousarray(array)


def _target(size: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    """An int is the shortest edge: the other follows the aspect ratio, cut down to whole pixels."""
    if isinstance(size, tuple):
        return size
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def _center_crop(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Cut [C, H, W] around its centre; where the image is smaller, zeros are put around it first."""
    height, width = (max(want, have) for want, have in zip(size, array.shape[1:], strict=True))
    if (height, width) != array.shape[1:]:
        top, left = -((array.shape[1] - height) // 2), -((array.shape[2] - width) // 2)
        padded = np.zeros((array.shape[0], height, width), array.dtype)
        padded[:, top : top + array.shape[1], left : left + array.shape[2]] = array
        array = padded
    top, left = (array.shape[1] - size[0]) // 2, (array.shape[2] - size[1]) // 2
    return array[:, top : top + size[0], left : left + size[1]]


def _processor(assets: Path | None) -> Mapping[str, Any]:
    path = assets / "preprocessor_config.json" if assets else None
    if path is None or not path.is_file():
        return {}
    return _json(path)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable JSON: {error}", hint="Fetch or save the file again.") from error
    return value if isinstance(value, dict) else {}


def _recipe(processor: Mapping[str, Any], channels: int, fallback: tuple[int, int]) -> _Recipe:
    if not processor:
        return _Recipe(fallback, 2, None, 1 / 255, (0.5,) * channels, (0.5,) * channels)
    kind = _kind(processor)
    values = {"do_resize": True, "do_rescale": True, "do_normalize": True, **_DEFAULTS.get(kind, {}), **processor}
    _known(kind, values)
    shortest = kind in _SHORTEST_WHEN_INT
    return _Recipe(
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


def _tokenizer(assets: Path | None) -> tuple[Any, Mapping[str, Any]]:
    if importlib.util.find_spec("tokenizers") is None:
        raise MissingDependencyError("texts need the tokenizers library", hint="pip install tokenizers")
    if assets is None:
        raise UsageError("the model came without a tokenizer", hint="Give token ids as an .npz file.")
    config = assets / "tokenizer_config.json"
    settings = _json(config) if config.is_file() else {}
    return _read_tokenizer(assets, bool(settings.get("do_lower_case", True))), settings


@lru_cache(maxsize=2)
def _read_tokenizer(assets: Path, lower: bool) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.implementations import BertWordPieceTokenizer

    try:
        if (assets / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(assets / "tokenizer.json"))
        if (assets / "vocab.txt").is_file():
            return BertWordPieceTokenizer(str(assets / "vocab.txt"), lowercase=lower)
    except Exception as error:
        raise UsageError(f"the tokenizer in {assets} cannot be read: {error}", hint="Fetch it again.") from error
    raise UsageError(f"{assets} has no tokenizer.json", hint="Give token ids as an .npz file.")


def _prepare(tokenizer: Any, settings: Mapping[str, Any], limit: int | None) -> None:
    """The file's own truncation and padding are dropped: they are what it was last used with."""
    tokenizer.no_truncation()
    if limit is not None:
        tokenizer.enable_truncation(max_length=limit)
    token = settings.get("pad_token", "[PAD]")
    token = token["content"] if isinstance(token, dict) else token
    pad = (tokenizer.padding or {}).get("pad_id") if token is None else tokenizer.token_to_id(token)
    tokenizer.no_padding()
    tokenizer.enable_padding(
        pad_id=pad or 0, pad_token=token or "[PAD]", direction=settings.get("padding_side", "right")
    )
