"""Input tensors from an `.npz` file: read, checked against the model's inputs, and fed row by row."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_zoo import _fingerprints
from model_zoo._samples import Sample, unreadable
from model_zoo._user_data import Feed
from toolkit.errors import UsageError
from toolkit.types import ModelSpec, Tensors, TensorSpec

__all__ = ["array_feed", "array_names", "read_arrays"]

_LABELS = "labels"
Read = TypeVar("Read")


def array_feed(source: Path, spec: ModelSpec) -> Feed:
    """A feed of the rows of an `.npz` file, with its classes where it has an array `labels`, [n] of numbers or names.

    Raises UsageError that names the file when its arrays are not what the model takes.
    """
    data = read_arrays(source, spec)
    total = min(len(array) for array in data.values())
    labels = _labels(source, total)
    del data

    def samples() -> Iterator[Sample]:
        for row in range(total):
            yield Sample(row, labels[row] if labels else None, f"{source}, row {row}")

    def start() -> Callable[[Sequence[Sample]], Tensors]:
        loaded = read_arrays(source, spec)
        return lambda chosen: _rows(loaded, chosen)

    def fingerprints(chosen: Sequence[Sample]) -> list[frozenset[bytes]]:
        loaded = read_arrays(source, spec)
        return [
            frozenset({_fingerprints.of_row({name: array[sample.content] for name, array in loaded.items()})})
            for sample in chosen
        ]

    return Feed(str(source), samples(), start, fingerprints)


def read_arrays(source: Path, spec: ModelSpec) -> dict[str, NDArray[np.generic]]:
    """One array [n, ...] for each input, with the input's dtype and shape. Raises UsageError that names the file."""
    data = _load(source, [item.name for item in spec.inputs])
    for item in spec.inputs:
        _check_array(source, item, data[item.name], spec)
    return data


def array_names(source: Path) -> tuple[str, ...]:
    """What the arrays of the file are called. Raises UsageError that names a file that is none."""
    return tuple(_opened(source, list))


def _rows(loaded: Tensors, chosen: Sequence[Sample]) -> Tensors:
    rows = np.array([sample.content for sample in chosen])
    return {name: array[rows] for name, array in loaded.items()}


def _load(source: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[np.generic]]:
    def read(file: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        _check_names(source, list(file), wanted)
        return {name: file[name] for name in (*wanted, *optional) if name in file}

    return _opened(source, read)


def _opened(source: Path, read: Callable[[Any], Read]) -> Read:
    try:
        with np.load(source, allow_pickle=False) as file:
            return read(file if hasattr(file, "files") else {})
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if not source.exists():
            raise unreadable(source, error) from error
        raise UsageError(
            f"{source} cannot be read as plain arrays", hint="Save it with numpy.savez, one array for each input."
        ) from error


def _labels(source: Path, total: int) -> list[Any] | None:
    labels = _load(source, (), (_LABELS,)).get(_LABELS)
    if labels is None:
        return None
    if labels.ndim != 1 or len(labels) != total or labels.dtype.kind not in "iuU":
        raise UsageError(
            f"{source}: '{_LABELS}' is {labels.dtype} {list(labels.shape)}",
            hint=f"It has to be whole numbers or names, [{total}]: one for each row.",
        )
    found: list[Any] = labels.tolist()
    return found


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
