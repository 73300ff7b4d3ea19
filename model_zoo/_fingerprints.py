"""What an item of a data set is known by, whatever its file is called: hashes of decoded content."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np
from PIL import Image

from toolkit.types import Tensors

__all__ = ["of_image", "of_row", "of_text", "of_tokens"]


def of_image(image: Image.Image) -> bytes:
    """Of an upright image in the model's colour mode: its size and pixels. A PNG and its BMP are one."""
    return _sha256([f"{image.mode}:{image.size}".encode(), image.tobytes()])


def of_text(text: str) -> bytes:
    """Of a text in Unicode's form NFKC, with every run of white space as one space."""
    return _sha256([" ".join(unicodedata.normalize("NFKC", text).split()).encode("utf-8", "surrogatepass")])


def of_tokens(tokens: Iterable[int]) -> bytes:
    """Of a run of token ids."""
    return _sha256([np.fromiter(tokens, np.int64).tobytes()])


def of_row(row: Tensors) -> bytes:
    """Of one row of every input: names, dtypes, shapes and bytes."""
    parts = [(f"{name}:{row[name].dtype.str}:{row[name].shape};".encode(), row[name].tobytes()) for name in sorted(row)]
    return _sha256(part for pair in parts for part in pair)


def _sha256(parts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
