"""Data that no family calibrates or evaluates on: what int8 is judged by here, in tests and in benchmarks alike.

Passages are read from packages of `constraints.txt` (licences, descriptions of data sets, documentation), photographs
from scikit-image and scikit-learn. Four of the ten photographs are also golden inputs of vision models, which feed
reports but set no range, scale or strength.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from model_zoo import _calibration, _text, _vision
from toolkit.errors import MissingDependencyError, UnsupportedError
from toolkit.types import Calibration, ModelSpec, Tensors

__all__ = ["CROPS", "PASSAGES", "held_out", "passages", "photographs"]

PASSAGES = 72
CROPS = 55

_PHOTOGRAPHS = (
    "chelsea.png", "china.jpg", "coffee.png", "rocket.jpg", "motorcycle_left.png",
    "motorcycle_right.png", "coins.png", "moon.png", "ihc.png", "page.png",
)  # fmt: skip
_LICENCES = (
    ("transformers", "LICENSE"), ("numpy", "LICENSE.txt"), ("pillow", "LICENSE"),
    ("onnxruntime", "ThirdPartyNotices.txt"),
)  # fmt: skip
_MODULES = (
    "numpy.random", "numpy.polynomial.polynomial", "numpy.linalg", "scipy.optimize",
    "scipy.linalg", "scipy.stats", "scipy.signal", "scipy.interpolate", "skimage.filters", "skimage.segmentation",
)  # fmt: skip
# Any model's vocabulary is larger, and only models without a tokenizer have words hashed into it.
_VOCABULARY = 1000


def held_out(spec: ModelSpec, rows: int = 4) -> Calibration:
    """The passages or photographs as inputs of the model, in batches of about `rows`; their hash names the set.

    Raises UnsupportedError for a model that takes neither, MissingDependencyError where a package is missing that
    they are read from.
    """
    if spec.kind == "encoder":
        texts = passages()
        return _calibration.hashed(
            lambda: _text.batches_of(spec, texts, _VOCABULARY, rows), len(texts), f"{len(texts)} held-out passages"
        )
    if spec.kind == "vision":
        files = photographs()
        return _calibration.hashed(
            lambda: _pixels(spec, files, rows), CROPS, f"{CROPS} crops of {len(files)} held-out photographs"
        )
    raise UnsupportedError(f"nothing is held out for a model of kind {spec.kind}", hint="Supported: encoder, vision.")


def passages() -> list[str]:
    """English paragraphs of 160 to 900 characters: a third each licences, data set descriptions and documentation."""
    kinds = (_licences(), _descriptions(), _documentation())
    return [passage for texts in kinds for passage in _chosen(texts, PASSAGES // len(kinds))]


def photographs() -> list[Path]:
    """The files of photographs that calibration does not use."""
    places = (_package("skimage", "scikit-image") / "data", _package("sklearn", "scikit-learn") / "datasets" / "images")
    return [next(place / name for place in places if (place / name).is_file()) for name in _PHOTOGRAPHS]


def _pixels(spec: ModelSpec, files: list[Path], rows: int) -> Iterator[Tensors]:
    for chosen in _calibration.chunked(CROPS, _calibration.batch_sizes(CROPS, spec.dims["batch"], rows)):
        yield _vision.tensors(spec, [_vision.view(files, index) for index in chosen])


def _chosen(texts: Iterable[str], count: int) -> list[str]:
    found: dict[str, None] = {}
    for text in texts:
        for block in text.replace("\r", "").split("\n\n"):
            passage = " ".join(block.split())
            if _is_prose(passage):
                found.setdefault(passage)
    kept = list(found)
    return [kept[index] for index in np.random.default_rng(7).permutation(len(kept))[:count]]


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    capitals = sum(character.isupper() for character in text)
    whole = 160 <= len(text) <= 900 and text[0].isalpha() and text[-1] in ".:;" and "---" not in text
    return whole and letters > 0.9 * len(text) and capitals < 0.2 * len(text)


def _licences() -> Iterator[str]:
    for name, wanted in _LICENCES:
        try:
            files = distribution(name).files or []
        except PackageNotFoundError:
            raise _missing(name) from None
        yield next(Path(str(file.locate())) for file in files if file.name == wanted).read_text("utf-8", "replace")


def _descriptions() -> Iterator[str]:
    for file in sorted((_package("sklearn", "scikit-learn") / "datasets" / "descr").glob("*.rst")):
        yield file.read_text(encoding="utf-8")


def _documentation() -> Iterator[str]:
    for name in _MODULES:
        _package(name.partition(".")[0], name.partition(".")[0])
        module = import_module(name)
        for public in sorted(module.__all__):
            yield inspect.getdoc(getattr(module, public)) or ""


def _package(module: str, name: str) -> Path:
    try:
        return Path(str(import_module(module).__file__)).parent
    except ImportError:
        raise _missing(name) from None


def _missing(name: str) -> MissingDependencyError:
    return MissingDependencyError(f"held-out data is read from {name}", hint=f"pip install -c constraints.txt {name}")
