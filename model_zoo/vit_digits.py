"""The built-in model: a small ViT on 8 by 8 handwritten digits, shipped with its weights and held-out labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_zoo import _calibration, _dims, _vision
from model_zoo.vit import ViT
from toolkit.types import Calibration, Evaluation, ModelSpec, Tensors

__all__ = ["FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES: list[str] = []
NAMES = {"vit-digits": "data/vit-digits"}

_DATA = Path(__file__).parent / "data"
_GOLDEN_ROWS = (1, 8, 3)


class VitDigits(ViT):
    """The ViT family with digits in place of photographs, and label accuracy."""

    name = "vit-digits"

    def golden(self, spec: ModelSpec) -> tuple[Tensors, ...]:
        """Three batches of digits: 1, 8 and 3 rows."""
        images, made, start = _array("golden_images"), [], 0
        for rows in (_dims.within(rows, spec.dims["batch"]) for rows in _GOLDEN_ROWS):
            made.append(_pixels(spec, images[np.arange(start, start + rows) % len(images)]))
            start += rows
        return tuple(made)

    def calibration(self, spec: ModelSpec, source: Path | None, count: int) -> Calibration:
        """Digits of the training split (128 are shipped), or the user's images."""
        if source is not None:
            return super().calibration(spec, source, count)
        total = min(count, len(_array("calibration_images")))
        sizes = _calibration.batch_sizes(total, spec.dims["batch"], 16)

        def batches() -> Iterator[Tensors]:
            yield from _batches(spec, _array("calibration_images")[:total], sizes)

        where = f"{total} digits of scikit-learn's set, from the training split"
        return _calibration.hashed(batches, min(total, sum(sizes)), where)

    def evaluation(self, spec: ModelSpec) -> Evaluation | None:
        """The 360 held-out digits with their labels."""
        images, labels = _array("heldout_images"), _array("heldout_labels").astype(np.int64)
        sizes = _calibration.batch_sizes(len(images), spec.dims["batch"], 60)
        rows = np.arange(sum(sizes)) % len(images)
        return Evaluation("accuracy", tuple(_batches(spec, images, sizes)), labels[rows])


def _batches(spec: ModelSpec, images: NDArray[np.uint8], sizes: list[int]) -> Iterator[Tensors]:
    start = 0
    for size in sizes:
        yield _pixels(spec, images[np.arange(start, start + size) % len(images)])
        start += size


def _pixels(spec: ModelSpec, images: NDArray[np.uint8]) -> Tensors:
    return _vision.tensors(spec, [Image.fromarray(image) for image in images])


def _array(name: str) -> NDArray[np.uint8]:
    with np.load(_DATA / "digits.npz", allow_pickle=False) as file:
        array: NDArray[np.uint8] = file[name]
    return array


FAMILY = VitDigits()
