"""Saved inputs and reference outputs: ONNX test data for the golden ones, safetensors for the evaluation.

`test_data_set_N/input_I.pb` and `output_I.pb` are the layout of ONNX's backend tests: other tools read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from toolkit.drift.summary import summarize
from toolkit.errors import UsageError
from toolkit.types import Evaluation, ModelSpec, Tensors, TensorSpec

__all__ = [
    "EVALUATION",
    "read_evaluation",
    "read_golden",
    "read_sets",
    "write_evaluation",
    "write_golden",
    "write_sets",
]

EVALUATION = "evaluation.safetensors"
Metric = Literal["accuracy", "retrieval", "language"]

_SET = "test_data_set_"
_LABELS = "labels"


def write_golden(folder: Path, inputs: Sequence[Tensors], outputs: Sequence[Tensors], spec: ModelSpec) -> list[Path]:
    """Write one `test_data_set_N` a pair, the tensors named and in the spec's order; answers the files."""
    return write_sets(folder, _SET, inputs, outputs, (spec.inputs, spec.outputs))


def write_sets(
    folder: Path,
    prefix: str,
    inputs: Sequence[Tensors],
    outputs: Sequence[Tensors],
    specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
) -> list[Path]:
    """Write a folder `<prefix>N` a pair, the tensors in the order of the specs of inputs and outputs."""
    written = []
    for index, (given, expected) in enumerate(zip(inputs, outputs, strict=True)):
        place = folder / f"{prefix}{index}"
        place.mkdir()
        written += _write_set(place, "input", given, [tensor.name for tensor in specs[0]])
        written += _write_set(place, "output", expected, [tensor.name for tensor in specs[1]])
    return written


def read_golden(folder: Path) -> tuple[list[dict[str, NDArray[Any]]], list[dict[str, NDArray[Any]]]]:
    """Inputs and reference outputs of all data sets, in order of their number.

    Raises UsageError for a file that is no tensor, and for one whose data lies elsewhere.
    """
    return read_sets(folder, _SET)


def read_sets(folder: Path, prefix: str) -> tuple[list[dict[str, NDArray[Any]]], list[dict[str, NDArray[Any]]]]:
    """As `read_golden`, of the folders `<prefix>N`; none is no error."""
    sets = _numbered(folder, rf"{prefix}(\d+)")
    return [_read_set(place, "input") for place in sets], [_read_set(place, "output") for place in sets]


def write_evaluation(path: Path, evaluation: Evaluation, reference: Sequence[Tensors], output: str) -> None:
    """Write each batch's inputs, the reference's `output` (what the task metric reads) and the labels.

    Of a language model's logits, which are too large to ship, only the summary is written (`toolkit.drift.summary`).
    """
    from safetensors.numpy import save_file

    tensors = {} if evaluation.labels is None else {_LABELS: evaluation.labels}
    for index, (given, expected) in enumerate(zip(evaluation.batches, reference, strict=True)):
        tensors |= {f"{index}.input.{name}": value for name, value in given.items()}
        kept = _reference(evaluation.metric, given, expected, output)
        tensors |= {f"{index}.reference.{name}": value for name, value in kept.items()}
    metadata = {"metric": evaluation.metric, "batches": str(len(evaluation.batches))}
    save_file({name: np.asarray(value, order="C") for name, value in tensors.items()}, path, metadata=metadata)


def read_evaluation(path: Path) -> tuple[Evaluation, list[dict[str, NDArray[Any]]]]:
    """The evaluation and the reference's outputs of each batch. Raises UsageError for a broken file."""
    tensors, metadata = _load(path)
    metric, count = metadata.get("metric"), metadata.get("batches", "")
    if metric not in get_args(Metric) or not count.isdecimal():
        raise UsageError(f"{path} is no evaluation file: its metadata names no metric or no number of batches")
    batches = tuple(_prefixed(tensors, f"{index}.input.") for index in range(int(count)))
    reference = [_prefixed(tensors, f"{index}.reference.") for index in range(int(count))]
    labels = cast("NDArray[np.int64] | None", tensors.get(_LABELS))
    return Evaluation(metric=cast("Metric", metric), batches=batches, labels=labels), reference


def _reference(metric: Metric, given: Tensors, expected: Tensors, output: str) -> Tensors:
    return summarize(expected[output], given, output) if metric == "language" else {output: expected[output]}


def _write_set(place: Path, word: str, tensors: Tensors, names: Sequence[str]) -> list[Path]:
    from onnx import numpy_helper

    lacking = [name for name in names if name not in tensors]
    if lacking:
        raise UsageError(f"golden {word}s lack {', '.join(lacking)}", hint=f"The model has: {', '.join(names)}.")
    files = []
    for index, name in enumerate(names):
        path = place / f"{word}_{index}.pb"
        path.write_bytes(numpy_helper.from_array(_plain(tensors[name]), name).SerializeToString())
        files.append(path)
    return files


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """The array as ONNX's reader of arrays takes it: texts as objects, which become UTF-8."""
    array = np.asarray(values, order="C")
    return array.astype(object) if array.dtype.kind == "U" else array


def _read_set(place: Path, word: str) -> dict[str, NDArray[Any]]:
    return dict(_read_tensor(path) for path in _numbered(place, rf"{word}_(\d+)\.pb"))


def _read_tensor(path: Path) -> tuple[str, NDArray[Any]]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import TensorProto, numpy_helper

    proto = TensorProto()
    try:
        proto.ParseFromString(path.read_bytes())
        if proto.data_location == TensorProto.EXTERNAL:
            raise UsageError(f"{path} keeps its data in another file, which test data must not")
        return proto.name, numpy_helper.to_array(proto)
    except (DecodeError, OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no ONNX tensor: {error}") from error


def _numbered(folder: Path, pattern: str) -> list[Path]:
    found = ((re.fullmatch(pattern, path.name), path) for path in folder.iterdir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _load(path: Path) -> tuple[dict[str, NDArray[Any]], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"cannot read the evaluation {path}: {error}") from error


def _prefixed(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
