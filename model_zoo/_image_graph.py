"""From uint8 pixels to a vision model's input, as a graph of standard operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from model_zoo import _preprocess
from model_zoo._image_recipe import Recipe
from model_zoo._image_text import image_graph, produced_size
from model_zoo._resampling import FILTERS, NEAREST
from toolkit.errors import UnsupportedError, UsageError
from toolkit.processing import Processing
from toolkit.types import ModelSpec, Tensors

__all__ = ["preprocessing", "upright"]

_PHOTOS = Path(__file__).parent / "data" / "photos"
_CONFIG = "preprocessor_config.json"
_CONFIGS = (_CONFIG, "config.json")
_SAMPLES = 3
_SINE_FILTERS = frozenset({Image.Resampling.LANCZOS, Image.Resampling.HAMMING})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def preprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """`image` uint8 [height, width, channels] and `orientation` int64 [] (EXIF's) to the model's input [1, C, H, W].

    Equal to `_preprocess.images` bit for bit, with the installed Pillow; with a filter made of sines a weight may round
    otherwise, so that 8-bit values differ by one. What `_preprocess` refuses gets no graph but the reason.
    """
    folder = next((path.parent for path in assets if path.name in _CONFIGS), None)
    made = spec.inputs[0]
    channels, height, width = (int(size) for size in made.shape[-3:])
    shape = (channels, height, width)
    try:
        recipe = _preprocess.recipe_of(folder, made.shape)
        _require_possible(recipe, shape)
        graph = image_graph(recipe, _table(recipe, channels), shape, made.name)
        pairs = [_pair(pixels, turn, folder, spec) for pixels, turn in _photographs(recipe, shape)]
    except (UnsupportedError, UsageError) as error:
        return Processing(reason=str(error))
    return _compared(graph, pairs, made.name, _bound(recipe, channels))


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as EXIF's orientation says to show it; a number that EXIF does not know turns nothing."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _require_possible(recipe: Recipe, shape: tuple[int, int, int]) -> None:
    if recipe.resize is not None and recipe.resample != NEAREST and recipe.resample not in FILTERS:
        raise UnsupportedError(f"Pillow's filter number {recipe.resample} as a graph")
    if shape[0] == 4 and recipe.resize is not None and recipe.resample in _SINE_FILTERS:
        # Dividing by a small alpha makes many steps of one.
        raise UnsupportedError(f"Pillow's filter number {recipe.resample} on images with alpha as a graph")
    if shape[0] not in (1, 3, 4):
        raise UnsupportedError(f"images for {shape[0]} channels")
    size = produced_size(recipe)
    if size not in ((None, None), shape[1:]):
        raise UsageError(f"{_CONFIG} makes images of {size[0]} by {size[1]}, the model takes {shape[1]} by {shape[2]}")


def _table(recipe: Recipe, channels: int) -> NDArray[np.float32]:
    """What each 8-bit value becomes, float32 [C, 256]: an entry is read where arithmetic could round otherwise."""
    values = np.broadcast_to(np.arange(256, dtype=np.uint8), (channels, 1, 256))
    return _preprocess.normalized(recipe, values)[:, 0]


def _bound(recipe: Recipe, channels: int) -> float:
    """0, or one 8-bit step: a library's sine may differ in its last bit, and a weight of 22 bits with it."""
    if recipe.resize is None or recipe.resample not in _SINE_FILTERS:
        return 0.0
    return float(np.abs(np.diff(_table(recipe, channels), axis=1)).max())


def _photographs(recipe: Recipe, shape: tuple[int, int, int]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Odd crops of shipped photographs: colour, turned, grey, with alpha, and every orientation.

    The first ones are what a bundle carries. Where the image must have the model's size before, they are cut to it.
    """
    if None in produced_size(recipe):
        # Of a size that follows the image's own, only a square one is sure to fit.
        fixed = (shape[1], shape[2]) if recipe.resize is None else (97, 97)
        yield from ((_crop("02-china.jpg", fixed, mode), 1) for mode in ("RGB", "L", "RGBA"))
        return
    yield _crop("01-chelsea.jpg", (97, 131), "RGB"), 1
    yield _crop("04-rocket.jpg", (119, 61), "RGB"), 6
    yield _crop("03-coffee.jpg", (77, 120), "L"), 1
    yield _crop("02-china.jpg", (83, 64), "RGBA"), 3
    yield from ((_crop("02-china.jpg", (41, 23), "RGB"), turn) for turn in range(1, 9))
    yield _crop("01-chelsea.jpg", (5, 190), "RGB"), 1
    yield _crop("03-coffee.jpg", (1, 1), "RGB"), 1


def _crop(name: str, size: tuple[int, int], mode: str) -> NDArray[np.uint8]:
    """Pixels [height, width, channels] out of the middle; of alpha, a ramp over the photograph's rows."""
    image = _preprocess.open_image(_PHOTOS / "golden" / name)
    left, top = (image.width - size[1]) // 2, (image.height - size[0]) // 2
    image = image.crop((left, top, left + size[1], top + size[0]))
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    pixels = np.asarray(image if mode == "RGBA" else image.convert(mode))
    return pixels.reshape(*size, -1)


def _pair(pixels: NDArray[np.uint8], turn: int, folder: Path | None, spec: ModelSpec) -> tuple[Tensors, Tensors]:
    image = upright(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), turn)
    made = spec.inputs[0]
    given: Tensors = {"image": pixels, "orientation": np.array(turn, np.int64)}
    return given, {made.name: _preprocess.images([image], folder, made.shape)}


def _compared(graph: Any, pairs: Sequence[tuple[Tensors, Tensors]], output: str, bound: float) -> Processing:
    import onnxruntime as ort

    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    off = [float(np.abs(session.run([output], dict(given))[0] - made[output]).max()) for given, made in pairs]
    within = max(off) <= bound
    return Processing(
        graph=graph,
        samples=tuple(pairs[:_SAMPLES]),
        exact=within,
        bound=bound,
        compared=f"{len(pairs)} crops of photographs, against Pillow {PIL.__version__}",
        reason="" if within else f"differs by up to {max(off):.2g} on {sum(value > bound for value in off)} of them",
    )
