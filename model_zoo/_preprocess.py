"""From image files and texts to input tensors, with numpy, Pillow and tokenizers: what `toolkit run` uses.

The arithmetic follows the image processors of transformers with their Pillow backend, and the tokenizer file.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model_zoo import _timm_config
from model_zoo._image_recipe import Recipe, read_recipe
from toolkit.errors import MissingDependencyError, UnsupportedError, UsageError

__all__ = [
    "encode", "image_size", "images", "in_mode", "longest", "mask_token", "normalized", "open_image", "prepared",
    "recipe_of", "texts", "token_ids", "token_text",
]  # fmt: skip

_ENDLESS = 1_000_000


def images(files: Sequence[Path | Image.Image], assets: Path | None, shape: Sequence[int | str]) -> NDArray[np.float32]:
    """Preprocess as `preprocessor_config.json` in `assets` says: float32 [n, C, H, W] for an input of that shape.

    Steps: orientation from EXIF, colour mode by C, resize, centre crop, rescale, normalise. Without the file:
    resize to H by W, values to -1..1. Raises UsageError for a file that is not an image, or a size that does not fit.
    """
    channels, height, width = (int(size) for size in shape[-3:])
    recipe = recipe_of(assets, shape)
    arrays = [_apply(recipe, _open(item, channels), channels) for item in files]
    for array in arrays:
        if array.shape != (channels, height, width):
            raise UsageError(
                f"preprocessor_config.json makes images of {array.shape[1]} by {array.shape[2]}, "
                f"the model takes {height} by {width}",
                hint="Correct `size` or `crop_size` in it, or give the tensors as .npz.",
            )
    return np.stack(arrays) if arrays else np.zeros((0, channels, height, width), np.float32)


def recipe_of(assets: Path | None, shape: Sequence[int | str]) -> Recipe:
    """The steps that `images` takes for an input of that shape. Raises UsageError where their channels do not fit."""
    channels, height, width = (int(size) for size in shape[-3:])
    recipe = _recipe(_processor(assets), channels, (height, width))
    if recipe.mean is not None and {len(recipe.mean), len(recipe.std)} != {channels}:
        raise UsageError(
            f"preprocessor_config.json normalises {len(recipe.mean)} channels, the model takes {channels}",
            hint="Give image_mean and image_std one number a channel.",
        )
    return recipe


def normalized(recipe: Recipe, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rescale and normalise pixels [C, H, W] as the recipe says, float32."""
    array: NDArray[Any] = pixels
    if recipe.scale is not None:
        array = (array.astype(np.float64) * recipe.scale).astype(np.float32)
    array = array.astype(np.float32)
    if recipe.mean is not None:
        mean = np.array(recipe.mean, np.float32).reshape(-1, 1, 1)
        array = (array - mean) / np.array(recipe.std, np.float32).reshape(-1, 1, 1)
    return np.ascontiguousarray(array)


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
    values: Sequence[str] | Sequence[tuple[str, str]],
    assets: Path | None,
    names: Sequence[str],
    *,
    max_length: int | None = None,
    min_length: int = 0,
) -> dict[str, NDArray[np.int64]]:
    """Tokenize with `tokenizer.json` (or BERT's `vocab.txt`) in `assets`: int64 [n, longest] for each input name.

    Truncated to `max_length` and to what the tokenizer's configuration allows; padded to the longest, or to
    `min_length` where that is more. Pairs of texts are one sequence, of which the second text is cut.
    Raises UsageError when there is no tokenizer or it lacks what an input needs.
    """
    encodings = encode(values, assets, max_length=max_length, min_length=min_length)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise UsageError(f"a tokenizer gives no {', '.join(unknown)}", hint="Give the tensors as an .npz file instead.")
    return {name: np.array([getattr(item, columns[name]) for item in encodings], dtype=np.int64) for name in names}


def encode(
    values: Sequence[str] | Sequence[tuple[str, str]],
    assets: Path | None,
    *,
    max_length: int | None = None,
    min_length: int = 0,
) -> list[Any]:
    """The tokenizer's encodings of what `texts` takes: ids, tokens, and where in its text each token is."""
    pairs = any(isinstance(value, tuple) for value in values)
    tokenizer = prepared(assets, max_length, pairs=pairs)
    try:
        encodings = tokenizer.encode_batch(list(values))
    except Exception as error:
        if not pairs:
            raise
        raise UsageError(f"question and text do not fit: {error}", hint="Give a shorter question.") from error
    if encodings and len(encodings[0]) < min_length:
        tokenizer.enable_padding(**{**tokenizer.padding, "length": min_length})
        encodings = tokenizer.encode_batch(list(values))
    return list(encodings)


def prepared(assets: Path | None, max_length: int | None, *, pairs: bool = False, own: bool = False) -> Any:
    """The tokenizer in `assets`, set up to truncate and pad as `texts` says. Raises UsageError without one.

    It is one for all, and set up anew with each use; `own` is another, as for a thread beside the others.
    """
    tokenizer, settings = _tokenizer(assets)
    if own:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(tokenizer.to_str())
    _prepare(tokenizer, settings, longest(settings, max_length), "only_second" if pairs else "longest_first")
    return tokenizer


def token_ids(values: Sequence[str], assets: Path | None) -> list[list[int]]:
    """Token ids of each text, without special tokens, truncation or padding. Raises UsageError without a tokenizer."""
    tokenizer, _ = _tokenizer(assets)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(values), add_special_tokens=False)]


def mask_token(assets: Path | None) -> tuple[str, int]:
    """The token that stands for a word to be guessed, and its id. Raises UsageError where the tokenizer has none."""
    tokenizer, settings = _tokenizer(assets)
    token = settings.get("mask_token") or "[MASK]"
    text = str(token["content"] if isinstance(token, dict) else token)
    index = tokenizer.token_to_id(text)
    if index is None:
        raise UsageError(f"the tokenizer has no token '{text}'", hint="Give token ids as an .npz file.")
    return text, int(index)


def token_text(index: int, assets: Path | None) -> str:
    """What a token is as text, as ` Paris` or `##ing`, stripped."""
    tokenizer, _ = _tokenizer(assets)
    return str(tokenizer.decode([index], skip_special_tokens=False)).strip() or str(tokenizer.id_to_token(index))


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


def _apply(recipe: Recipe, image: Image.Image, channels: int) -> NDArray[np.float32]:
    if recipe.resize is not None:
        height, width = _target(recipe.resize, image.height, image.width)
        image = image.resize((width, height), resample=Image.Resampling(recipe.resample))
    array: NDArray[Any] = np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)
    if recipe.crop is not None:
        array = _center_crop(array, recipe.crop, to_even=recipe.crop_to_even)
    return normalized(recipe, array)


def _target(size: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    """An int is the shortest edge: the other follows the aspect ratio, cut down to whole pixels."""
    if isinstance(size, tuple):
        return size
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def _center_crop(array: NDArray[Any], size: tuple[int, int], *, to_even: bool) -> NDArray[Any]:
    """Cut [C, H, W] around its centre; where the image is smaller, zeros are put around it first."""
    height, width = (max(want, have) for want, have in zip(size, array.shape[1:], strict=True))
    if (height, width) != array.shape[1:]:
        top, left = -((array.shape[1] - height) // 2), -((array.shape[2] - width) // 2)
        padded = np.zeros((array.shape[0], height, width), array.dtype)
        padded[:, top : top + array.shape[1], left : left + array.shape[2]] = array
        array = padded
    margins = (array.shape[1] - size[0], array.shape[2] - size[1])
    top, left = (round(margin / 2) if to_even else margin // 2 for margin in margins)
    return array[:, top : top + size[0], left : left + size[1]]


def _recipe(processor: Mapping[str, Any], channels: int, fallback: tuple[int, int]) -> Recipe:
    if _timm_config.is_timm(processor):
        return _timm_config.settings(processor).recipe()
    return read_recipe(processor, channels, fallback)


def _processor(assets: Path | None) -> Mapping[str, Any]:
    """What says the steps: the image processor's file, or the `config.json` of a timm model, which has no other."""
    if assets is None:
        return {}
    if (assets / "preprocessor_config.json").is_file():
        return _json(assets / "preprocessor_config.json")
    own = _json(assets / "config.json") if (assets / "config.json").is_file() else {}
    return own if _timm_config.is_timm(own) else {}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable JSON: {error}", hint="Fetch or save the file again.") from error
    return value if isinstance(value, dict) else {}


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


def _prepare(tokenizer: Any, settings: Mapping[str, Any], limit: int | None, strategy: str) -> None:
    """The file's own truncation and padding are dropped: they are what it was last used with."""
    tokenizer.no_truncation()
    if limit is not None:
        tokenizer.enable_truncation(max_length=limit, strategy=strategy)
    token = settings.get("pad_token", "[PAD]")
    token = token["content"] if isinstance(token, dict) else token
    pad = (tokenizer.padding or {}).get("pad_id") if token is None else tokenizer.token_to_id(token)
    tokenizer.no_padding()
    tokenizer.enable_padding(
        pad_id=pad or 0, pad_token=token or "[PAD]", direction=settings.get("padding_side", "right")
    )
