"""coremltools' builder of ML Programs, imported in one place and quietly; number types of ONNX by MIL's names."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from toolkit.errors import UnsupportedError

# It warns at each import that this torch is newer than it was tested with; no torch is involved here.
logging.getLogger("coremltools").setLevel(logging.ERROR)

import coremltools as ct  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.mil import Var, types  # noqa: E402

__all__ = ["NUMPY", "TARGET", "Var", "ct", "dtype_name", "held", "mb", "types"]

TARGET = ct.target.iOS18
"""The first with attention as one operator, states, and weights in blocks."""

_NAMES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.DOUBLE: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.INT64: "int32",
    ir.DataType.INT32: "int32",
    ir.DataType.INT16: "int16",
    ir.DataType.UINT16: "uint16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
    ir.DataType.BOOL: "bool",
}
"""ML Programs know no 64 bits; shapes and token ids fit 32."""

NUMPY = {
    "fp32": np.float32,
    "fp16": np.float16,
    "int32": np.int32,
    "int16": np.int16,
    "uint16": np.uint16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}


def dtype_name(dtype: ir.DataType | None, subject: str) -> str:
    """MIL's name of an ONNX number type. Raises UnsupportedError that names the subject."""
    if dtype not in _NAMES:
        raise UnsupportedError(
            f"{subject} is {dtype.name.lower() if dtype is not None else 'of no known type'}, which ML Programs lack",
            hint=f"They take: {', '.join(dict.fromkeys(_NAMES.values()))}.",
        )
    return _NAMES[dtype]


def held(array: NDArray[Any], dtype: str) -> Any:
    """The numbers as the builder takes them: integers beyond 32 bits at its ends, a scalar for rank 0."""
    if np.issubdtype(array.dtype, np.integer) and dtype == "int32":
        array = np.clip(array, np.iinfo(np.int32).min, np.iinfo(np.int32).max)
    typed: NDArray[Any] = np.ascontiguousarray(array.astype(NUMPY[dtype])) if array.ndim else array.astype(NUMPY[dtype])
    return typed if typed.ndim else typed[()]
