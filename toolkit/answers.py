"""From output tensors to what a person wants to see: labels, embeddings, or a summary of the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError
from toolkit.types import Tensors

__all__ = ["cosines", "embeddings", "label_of", "save_npz", "shares", "summaries", "top_labels", "whole_file"]

SHOWN = 8


def top_labels(logits: NDArray[Any], labels: Sequence[str], count: int) -> list[list[dict[str, Any]]]:
    """The `count` likeliest classes of each row of logits [n, classes], with softmax probabilities in [0, 1]."""
    every = shares(logits)
    best = np.argsort(-every, axis=1, kind="stable")[:, :count]
    return [
        [
            {"index": int(index), "label": label_of(labels, int(index)), "probability": float(row[index])}
            for index in order
        ]
        for row, order in zip(every, best, strict=True)
    ]


def shares(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Softmax over the last axis of logits [n, classes], in float64."""
    scores = logits.astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    answer: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return answer


def label_of(labels: Sequence[str], index: int) -> str:
    """The name of a class, or its number where it has none."""
    return labels[index] if index < len(labels) else str(index)


def embeddings(vectors: NDArray[Any]) -> list[dict[str, Any]]:
    """Length, norm and first values of each row of vectors [n, width]."""
    return [
        {
            "dims": len(vector),
            "norm": float(np.linalg.norm(vector.astype(np.float64))),
            "first": [float(value) for value in vector[:SHOWN]],
        }
        for vector in vectors
    ]


def cosines(vectors: NDArray[Any]) -> list[list[float]]:
    """Cosine similarity of every row with every row, [n, n]; a row of zeros is similar to nothing."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(norms == 0, 1.0, norms)
    return [[float(value) for value in row] for row in unit @ unit.T]


def summaries(outputs: Tensors) -> list[dict[str, Any]]:
    """Name, dtype, shape, extremes, mean and the count of values that are not finite, for each output."""
    return [_summary(name, array) for name, array in outputs.items()]


def save_npz(path: Path, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Write the outputs as .npz. Raises UsageError if it cannot."""
    with whole_file(path) as file:
        np.savez(file, **cast("Any", dict(outputs)))


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file beside its final name, moved there when the block ends well. Raises UsageError where it cannot be."""
    folder = path.absolute().parent
    if not folder.is_dir() or path.is_dir():
        raise UsageError(f"cannot write {path}", hint="Give a file name in an existing folder.")
    with NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", delete=False) as file:
        part = Path(file.name)
        try:
            yield cast("IO[bytes]", file)
            file.close()
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _summary(name: str, array: NDArray[Any]) -> dict[str, Any]:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    known = finite.size > 0
    return {
        "name": name,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "min": float(finite.min()) if known else None,
        "max": float(finite.max()) if known else None,
        "mean": float(finite.mean(dtype=np.float64)) if known else None,
        "not_finite": int(array.size - finite.size),
    }
