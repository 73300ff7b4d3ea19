"""From output tensors to what a person wants to see: labels, embeddings, or a summary of the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError
from toolkit.types import Tensors

__all__ = ["cosines", "embeddings", "save_npz", "summaries", "top_labels"]

SHOWN = 8


def top_labels(logits: NDArray[Any], labels: Sequence[str], count: int) -> list[list[dict[str, Any]]]:
    """The `count` likeliest classes of each row of logits [n, classes], with softmax probabilities in [0, 1]."""
    scores = logits.astype(np.float64)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :count]
    return [
        [
            {"index": int(index), "label": _label(labels, int(index)), "probability": float(row[index])}
            for index in order
        ]
        for row, order in zip(shares, best, strict=True)
    ]


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
    """Write the outputs beside their final name, then move them there. Raises UsageError if it cannot."""
    folder = path.absolute().parent
    if not folder.is_dir() or path.is_dir():
        raise UsageError(f"cannot write {path}", hint="Give a file name in an existing folder.")
    with NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", delete=False) as file:
        part = Path(file.name)
        try:
            np.savez(file, **cast("Any", dict(outputs)))
            file.close()
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)


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
