"""Vision models: the module around the Transformers model, its spec, and its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from model_zoo import _calibration, _dims, _fingerprints, _loading, _preprocess, _source, _user_data
from model_zoo._arrays import array_feed
from model_zoo._calibration import OWN
from model_zoo._datasets import open_samples
from model_zoo._resolve import needs_no_files
from model_zoo._samples import Sample, image_samples
from model_zoo._user_data import Feed
from toolkit.data_source import parse_source
from toolkit.errors import UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Evaluation, ModelRequest, ModelSpec, Tensors, TensorSpec

__all__ = [
    "Photographs", "VisionEncoder", "calibration", "evaluation", "golden", "image_fingerprint", "input_size",
    "labels_of", "tensors", "view", "vision_spec",
]  # fmt: skip

_PHOTOS = Path(__file__).parent / "data" / "photos"
_GOLDEN_ROWS = (1, 3)


class VisionEncoder(nn.Module):
    """Any Transformers vision model with its outputs by name: float32 [batch, C, H, W] in, the named ones out."""

    def __init__(self, model: PreTrainedModel, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.train(model.training)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The named outputs."""
        result = self.model(pixel_values=pixel_values)
        return {name: getattr(result, name) for name in self.outputs}


class Photographs:
    """What a family of vision models takes in and hands on: shipped or the user's photographs, and its small files."""

    def golden(self, spec: ModelSpec) -> tuple[Tensors, ...]:
        """Photographs, preprocessed."""
        return golden(spec)

    def calibration(self, spec: ModelSpec, data: Data = OWN) -> Calibration:
        """Photographs: the user's, or the shipped ones."""
        return calibration(spec, data)

    def evaluation(self, spec: ModelSpec, data: Data = OWN) -> Evaluation | None:
        """Photographs: the user's; no labelled ones are shipped."""
        return evaluation(spec, data)

    def assets(self, spec: ModelSpec) -> tuple[Path, ...]:
        """The image processor's file, and the configuration with the class names."""
        return _loading.asset_files(spec)


def input_size(request: ModelRequest, config: Any, default: int | None = None) -> tuple[int, int]:
    """Height and width of the input: `default` says that the model resizes its position embedding.

    Then the image processor's size counts before the configuration's, and `default` where there is no processor.
    """
    own = _pair(getattr(config, "image_size", None))
    made = _processor_size(request)
    if default is not None or own is None:
        fallback = (default or 224, default or 224)
        if own is not None and max(own) <= max(fallback):
            fallback = own
        return made or fallback
    return own


def vision_spec(
    request: ModelRequest,
    *,
    family: str,
    task: str,
    architecture: str,
    channels: int,
    size: tuple[int, int],
    outputs: Sequence[TensorSpec],
    labels: Sequence[str] = (),
) -> ModelSpec:
    """The spec of a vision model: float32 `pixel_values` [batch, channels, height, width]."""
    return ModelSpec(
        name=request.name,
        family=family,
        kind="vision",
        task=task,
        source=request.source,
        architecture=architecture,
        inputs=(TensorSpec("pixel_values", "float32", ("batch", channels, *size)),),
        outputs=tuple(outputs),
        dims=_dims.merge({"batch": _dims.BATCH}, request.dims, {}),
        revision=request.revision,
        weights=request.weights,
        seed=request.seed,
        labels=tuple(labels),
        offline=request.offline,
        trust_remote_code=request.trust_remote_code,
    )


def labels_of(config: Any) -> tuple[str, ...]:
    """Class names in order, from the configuration's `id2label`."""
    return tuple(str(name) for _, name in sorted((config.id2label or {}).items()))


def golden(spec: ModelSpec) -> tuple[Tensors, ...]:
    """Two batches of real photographs, one row and three rows."""
    files = sorted((_PHOTOS / "golden").iterdir())
    sizes = [_dims.within(rows, spec.dims["batch"]) for rows in _GOLDEN_ROWS]
    return tuple(tensors(spec, [files[row] for row in rows]) for rows in _calibration.chunked(len(files), sizes))


def calibration(spec: ModelSpec, data: Data) -> Calibration:
    """Images of the user's folder, file or data set, an `.npz` of pixel values, or the shipped photographs."""
    if not data.source:
        return _shipped(spec, data.count or _calibration.COUNT)
    return _user_data.calibration(spec, data, _feed(spec, data, held_out=False))


def evaluation(spec: ModelSpec, data: Data) -> Evaluation | None:
    """The user's images, or an `.npz` of pixel values; None without, since no photographs with classes are shipped."""
    return _user_data.evaluation(spec, data, _feed(spec, data, held_out=True)) if data.source else None


def image_fingerprint(spec: ModelSpec, image: Image.Image) -> frozenset[bytes]:
    """What an image is known by, once it is in the model's colour mode."""
    return frozenset({_fingerprints.of_image(_preprocess.in_mode(image, _channels(spec)))})


def _feed(spec: ModelSpec, data: Data, *, held_out: bool) -> Feed:
    source = parse_source(data)
    if source.suffix == ".npz" and source.path is not None:
        return array_feed(source.path, spec)
    name, samples = str(source.path), image_samples(source.path) if source.path and not source.name else iter(())
    if source.name:
        count = _user_data.evaluation_count(spec, data)
        name, samples = open_samples(source, "image", held_out=held_out, offline=spec.offline, count=count)

    def batch(chosen: Sequence[Sample]) -> Tensors:
        return tensors(spec, [_image(sample) for sample in chosen])

    def fingerprints(chosen: Sequence[Sample]) -> list[frozenset[bytes]]:
        return [image_fingerprint(spec, _image(sample)) for sample in chosen]

    return Feed(name, samples, lambda: batch, fingerprints)


def _image(sample: Sample) -> Image.Image:
    content = sample.content
    if isinstance(content, Path):
        return _preprocess.open_image(content)
    return _preprocess.open_image(sample.where, content) if isinstance(content, bytes) else content()


def _channels(spec: ModelSpec) -> int:
    return int(spec.inputs[0].shape[-3])


def _shipped(spec: ModelSpec, count: int) -> Calibration:
    """The shipped photographs; beyond their number, seeded crops of them."""
    files = sorted((_PHOTOS / "calibration").iterdir())
    sizes = _calibration.batch_sizes(count, spec.dims["batch"], 4)

    def batches() -> Iterator[Tensors]:
        for rows in _calibration.chunked(sum(sizes), sizes):
            yield tensors(spec, [view(files, row) for row in rows])

    photos = min(count, len(files))
    crops = f" and {count - photos} crops of them" if count > photos else ""
    return _calibration.hashed(
        batches,
        sum(sizes),
        f"{photos} photographs{crops} (model_zoo/data/SOURCES.md)",
        items=lambda: [image_fingerprint(spec, view(files, index)) for index in range(sum(sizes))],
    )


def view(files: Sequence[Path], index: int) -> Image.Image:
    """The index-th image: each file as it is, then, over and over, a seeded crop of each."""
    image, turn = _preprocess.open_image(files[index % len(files)]), index // len(files)
    if turn == 0:
        return image
    random = np.random.default_rng(index)
    width, height = (int(side * random.uniform(0.5, 0.9)) for side in image.size)
    left, top = random.integers(0, image.width - width + 1), random.integers(0, image.height - height + 1)
    crop = image.crop((int(left), int(top), int(left) + width, int(top) + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop


def tensors(spec: ModelSpec, items: Sequence[Path | Image.Image]) -> Tensors:
    """`pixel_values` of image files or images, by the model's own image processor where it has one."""
    return {"pixel_values": _preprocess.images(items, _loading.model_folder(spec), spec.inputs[0].shape)}


def _processor_size(request: ModelRequest) -> tuple[int, int] | None:
    if needs_no_files(request):
        return None
    folder = _source.files(request.source, revision=request.revision, offline=request.offline)
    return _preprocess.image_size(folder)


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    if len(size) != 2:
        raise UsageError(f"image_size {size} in config.json must be a number or two")
    return int(size[0]), int(size[1])
