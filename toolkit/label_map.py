"""Classes of pixels: which there are, how much of the image each has, and the map as a picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.answers import label_of, whole_file

__all__ = ["class_shares", "label_maps", "save_map"]

COLOURS = 256


def label_maps(logits: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int64]:
    """The likeliest class of each pixel, int64 [n, *size], of logits [n, classes, h, w] enlarged bilinearly.

    Pixel centres are aligned, as `torch.nn.functional.interpolate` does with `align_corners=False`.
    """
    return np.stack([_enlarged(_enlarged(row, size[0], 1), size[1], 2).argmax(0) for row in logits])


def class_shares(labels: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """Every class on a label map [h, w] with its share of the pixels, largest first."""
    indices, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        {
            "index": int(indices[place]),
            "label": label_of(names, int(indices[place])),
            "share": float(counts[place] / labels.size),
        }
        for place in order
    ]


def save_map(path: Path, labels: NDArray[np.int64]) -> None:
    """Write a label map [h, w] as a PNG with a palette, whose values are the classes. Raises UsageError if it cannot.

    More than 256 classes become 16-bit grey.
    """
    if labels.max(initial=0) < COLOURS:
        image = Image.fromarray(labels.astype(np.uint8)).convert("L")
        image.putpalette(_palette())
    else:
        image = Image.fromarray(labels.astype(np.uint16))
    with whole_file(path) as file:
        image.save(file, format="PNG")


def _palette() -> list[int]:
    """Hues a golden angle apart, so that neighbouring classes differ; class 0 is black."""
    turns = ((index * 0.618034) % 1 for index in range(1, COLOURS))
    colours = [colorsys.hsv_to_rgb(turn, 0.75, 0.95) for turn in turns]
    return [0, 0, 0, *(round(255 * part) for colour in colours for part in colour)]


def _enlarged(array: NDArray[Any], size: int, axis: int) -> NDArray[Any]:
    have = array.shape[axis]
    place = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, have - 1)
    low = place.astype(int)
    high = np.minimum(low + 1, have - 1)
    shape = [1] * array.ndim
    shape[axis] = size
    part = (place - low).astype(array.dtype).reshape(shape)
    answer: NDArray[Any] = array.take(low, axis) * (1 - part) + array.take(high, axis) * part
    return answer
