"""Streams of inputs: the user's folder or file, hashed once, and read anew each time they are asked for."""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError
from toolkit.types import Calibration, Dim, ModelSpec, Tensors, TensorSpec

__all__ = ["IMAGES", "arrays", "batch_sizes", "hashed", "image_files", "lines"]

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def hashed(batches: Callable[[], Iterator[Tensors]], count: int, source: str) -> Calibration:
    """A calibration over the stream; reads it once, so that a bad file is found here and not in mid-export.

    The hash covers names, dtypes, shapes and bytes in order.
    """
    digest = hashlib.sha256()
    for batch in batches():
        for name in sorted(batch):
            array = np.ascontiguousarray(batch[name])
            digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            digest.update(array.data)
    return Calibration(batches=batches, count=count, source=source, sha256=digest.hexdigest())


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


def image_files(folder: Path, count: int) -> list[Path]:
    """The first `count` image files of a folder, in order of name. Raises UsageError when there is none."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES and path.is_file())
    except OSError as error:
        raise _unreadable(folder, error) from error
    if not found:
        raise UsageError(f"{folder} holds no images", hint=f"Taken are: {', '.join(sorted(IMAGES))}.")
    return found[:count]


def lines(source: Path, count: int) -> list[str]:
    """The first `count` texts of a `.txt` file (one a line), a `.jsonl` file (key `text`), or a folder of them.

    Raises UsageError that names the file and line when it cannot be read or holds nothing.
    """
    try:
        paths = [source] if source.is_file() else sorted(p for p in source.iterdir() if p.suffix in _TEXTS)
    except OSError as error:
        raise _unreadable(source, error) from error
    found = list(itertools.islice((text for path in paths for text in _texts(path)), count))
    if not found:
        raise UsageError(f"{source} holds no text", hint="Give a .txt file, one text a line, or a .jsonl file.")
    return found


def arrays(source: Path, spec: ModelSpec, count: int, wanted: int = 8) -> Calibration:
    """Inputs from an `.npz` file: one array [n, ...] for each input, with the input's dtype and shape.

    Raises UsageError that names the file when it is not that.
    """
    data = _read_arrays(source, spec)
    total = min(count, *(len(array) for array in data.values()))
    sizes = batch_sizes(total, spec.dims.get("batch", Dim(1, 1, total)), wanted)
    del data

    def batches() -> Iterator[Tensors]:
        loaded, start = _read_arrays(source, spec), 0
        for size in sizes:
            rows = np.arange(start, start + size) % total
            yield {name: array[rows] for name, array in loaded.items()}
            start += size

    return hashed(batches, min(total, sum(sizes)), str(source))


_TEXTS = frozenset({".txt", ".jsonl"})


def _texts(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_text(path, number, line) if path.suffix == ".jsonl" else line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _json_text(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(
            f"{path}, line {number}, is not JSON: {error}", hint='A line is {"text": "…"} or "…".'
        ) from error
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise UsageError(f"{path}, line {number}, has no text", hint='A line is {"text": "…"} or "…".')
    return text


def _read_arrays(source: Path, spec: ModelSpec) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(source, allow_pickle=False) as file:
            names = list(file) if hasattr(file, "files") else []
            _check_names(source, names, [item.name for item in spec.inputs])
            data = {item.name: file[item.name] for item in spec.inputs}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if not source.exists():
            raise _unreadable(source, error) from error
        raise UsageError(
            f"{source} cannot be read as plain arrays", hint="Save it with numpy.savez, one array for each input."
        ) from error
    for item in spec.inputs:
        _check_array(source, item, data[item.name], spec)
    return data


def _check_names(source: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UsageError(
            f"{source} has no array {', '.join(missing)}", hint=f"The model's inputs: {', '.join(wanted)}."
        )


def _check_array(source: Path, item: TensorSpec, array: NDArray[np.generic], spec: ModelSpec) -> None:
    name, dtype, shape = item.name, item.dtype, item.shape
    wanted = f"[{', '.join(map(str, shape))}]"
    if array.dtype != np.dtype(dtype) or array.ndim != len(shape) or not array.size:
        raise UsageError(
            f"{source}: '{name}' is {array.dtype} {list(array.shape)}, the model takes {dtype} {wanted}",
            hint="Save it with that dtype and shape; the first axis counts the samples.",
        )
    for size, axis in zip(array.shape[1:], shape[1:], strict=True):
        low, high = (axis, axis) if isinstance(axis, int) else (spec.dims[axis].min, spec.dims[axis].max)
        if not low <= size <= high:
            raise UsageError(
                f"{source}: '{name}' has shape {list(array.shape)}, the model takes {wanted}",
                hint=f"'{axis}' goes from {low} to {high}." if low < high else f"This axis has to be {low}.",
            )


def _unreadable(path: Path, error: Exception) -> UsageError:
    if not path.exists():
        return UsageError(f"there is no {path}", hint="Give an existing folder or file.")
    return UsageError(f"{path} cannot be read: {error}", hint="Check the file and its permissions.")
