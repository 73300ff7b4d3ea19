"""What calibration and evaluation sets are made of: streams of batches, each hashed when it is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.recipe.document import Data
from toolkit.types import Calibration, Dim, Evaluation, Fingerprints, Tensors

__all__ = ["COUNT", "OWN", "batch_sizes", "chunked", "hashed", "held_out"]

COUNT = 64
"""How many samples activations are measured on, where nobody says."""

OWN = Data()
"""The family's own samples, as many as it takes by itself."""


def hashed(
    batches: Callable[[], Iterator[Tensors]],
    count: int,
    source: str,
    *,
    items: Fingerprints = tuple,
    total: int | None = None,
    seed: int | None = None,
) -> Calibration:
    """A calibration over the stream; reads it once, so that a bad file is found here and not in mid-export.

    The hash covers names, dtypes, shapes and bytes in order.
    """
    digest = _sha256(batches())
    return Calibration(batches, count, source, digest.hexdigest(), total=total, seed=seed, items=items)


def held_out(
    metric: Literal["accuracy", "retrieval", "language"],
    batches: Iterable[Tensors],
    labels: NDArray[np.int64] | None = None,
    *,
    count: int,
    source: str,
    items: Fingerprints = tuple,
    total: int | None = None,
    seed: int | None = None,
) -> Evaluation:
    """An evaluation of these batches; its hash is that of a calibration with the same tensors, then the labels."""
    kept = tuple(batches)
    digest = _sha256(kept)
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    return Evaluation(metric, kept, labels, count, source, digest.hexdigest(), total=total, seed=seed, items=items)


def batch_sizes(total: int, dim: Dim, wanted: int) -> list[int]:
    """Row counts of batches over `total` rows, each within the range of the batch dimension.

    Rows that cannot fill a smallest batch are left out; with fewer rows than that, one batch has to repeat rows.
    """
    size = max(dim.min, min(wanted, dim.max))
    sizes = [size] * (total // size)
    rest = total % size
    if rest >= dim.min:
        sizes.append(rest)
    return sizes or [size]


def chunked(total: int, sizes: Sequence[int]) -> Iterator[list[int]]:
    """The rows of each batch of these sizes, begun anew where they go beyond the last of `total`."""
    start = 0
    for size in sizes:
        yield [index % total for index in range(start, start + size)]
        start += size


def _sha256(batches: Iterable[Tensors]) -> hashlib._Hash:
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            array = np.ascontiguousarray(batch[name])
            digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            digest.update(array.data)
    return digest
