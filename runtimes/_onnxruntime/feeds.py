"""Checking what is fed to a session before ONNX Runtime sees it, so that the message can say what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError
from toolkit.types import Tensors, TensorSpec

__all__ = ["check_feeds", "describe", "spec_of"]

_DTYPES: Mapping[str, str] = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(uint8)": "uint8",
}


def spec_of(argument: Any) -> TensorSpec:
    """The name, numpy dtype and shape of an `onnxruntime.NodeArg`; an unnamed dynamic dimension is `?`."""
    shape = tuple(dim if dim is not None else "?" for dim in argument.shape)
    return TensorSpec(argument.name, _DTYPES.get(argument.type, argument.type), shape)


def check_feeds(inputs: Tensors, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """The inputs as arrays. Raises UsageError for a name, dtype, rank or dimension that the graph does not take."""
    _check_names(inputs, specs)
    feeds = {spec.name: np.asarray(inputs[spec.name]) for spec in specs}
    for spec in specs:
        _check_tensor(feeds[spec.name], spec)
    _check_shared_dims(feeds, specs)
    return feeds


def describe(specs: Sequence[TensorSpec]) -> str:
    """The specs in one line: `pixel_values float32 [batch, 3, 224, 224]`."""
    return ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)


def _check_names(inputs: Tensors, specs: Sequence[TensorSpec]) -> None:
    known = [spec.name for spec in specs]
    missing = [name for name in known if name not in inputs]
    unknown = [name for name in inputs if name not in known]
    if missing or unknown:
        said = [f"missing: {', '.join(missing)}"] if missing else []
        said += [f"unknown: {', '.join(unknown)}"] if unknown else []
        raise UsageError(f"wrong input names ({'; '.join(said)})", hint=f"It takes: {describe(specs)}.")


def _check_tensor(array: NDArray[Any], spec: TensorSpec) -> None:
    if array.dtype.name != spec.dtype:
        raise UsageError(
            f"input '{spec.name}' is {array.dtype.name}, not {spec.dtype}",
            hint=f"It takes: {describe([spec])}. Use array.astype('{spec.dtype}').",
        )
    fixed = [isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, array.shape, strict=False)]
    if array.ndim != len(spec.shape) or not all(fixed):
        raise UsageError(f"input '{spec.name}' has shape {list(array.shape)}", hint=f"It takes: {describe([spec])}.")


def _check_shared_dims(feeds: Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True):
            if not isinstance(dim, str) or dim == "?":
                continue
            first, owner = seen.setdefault(dim, (size, spec.name))
            if first != size:
                raise UsageError(
                    f"dimension '{dim}' is {first} in '{owner}' and {size} in '{spec.name}'",
                    hint=f"It must be the same in all inputs: {describe(specs)}.",
                )
