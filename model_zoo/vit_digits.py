"""The built-in model: a small ViT on 8 by 8 handwritten digits, shipped with its weights and held-out labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_zoo import _calibration, _dims, _vision
from model_zoo._calibration import OWN
from model_zoo.vit import ViT
from toolkit.recipe.document import Data
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
        sizes = [_dims.within(rows, spec.dims["batch"]) for rows in _GOLDEN_ROWS]
        return tuple(_batches(spec, _array("golden_images"), sizes))

    def calibration(self, spec: ModelSpec, data: Data = OWN) -> Calibration:
        """Digits of the training split (128 are shipped), or the user's images."""
        if data.source:
            return super().calibration(spec, data)
        images = _array("calibration_images")[: data.count or _calibration.COUNT]
        sizes = _calibration.batch_sizes(len(images), spec.dims["batch"], 16)

        def batches() -> Iterator[Tensors]:
            yield from _batches(spec, images, sizes)

        where = f"{len(images)} digits of scikit-learn's set, from the training split"
        count = min(len(images), sum(sizes))
        return _calibration.hashed(batches, count, where, items=lambda: _known_by(spec, images))

    def evaluation(self, spec: ModelSpec, data: Data = OWN) -> Evaluation | None:
        """The 360 held-out digits with their labels, or the user's images."""
        if data.source:
            return super().evaluation(spec, data)
        images, labels = _array("heldout_images"), _array("heldout_labels").astype(np.int64)
        sizes = _calibration.batch_sizes(len(images), spec.dims["batch"], 60)
        rows = np.arange(sum(sizes)) % len(images)
        return _calibration.held_out(
            "accuracy",
            _batches(spec, images, sizes),
            labels[rows],
            count=min(len(images), sum(sizes)),
            source=f"{len(images)} digits of scikit-learn's set, from the held-out split",
            items=lambda: _known_by(spec, images),
        )


def _known_by(spec: ModelSpec, images: NDArray[np.uint8]) -> list[frozenset[bytes]]:
    return [_vision.image_fingerprint(spec, Image.fromarray(image)) for image in images]


def _batches(spec: ModelSpec, images: NDArray[np.uint8], sizes: list[int]) -> Iterator[Tensors]:
    for rows in _calibration.chunked(len(images), sizes):
        yield _pixels(spec, images[rows])


def _pixels(spec: ModelSpec, images: NDArray[np.uint8]) -> Tensors:
    return _vision.tensors(spec, [Image.fromarray(image) for image in images])


def _array(name: str) -> NDArray[np.uint8]:
    with np.load(_DATA / "digits.npz", allow_pickle=False) as file:
        array: NDArray[np.uint8] = file[name]
    return array


FAMILY = VitDigits()
