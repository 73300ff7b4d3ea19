"""The 8-bit number formats that Linears are quantized to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.arithmetic import E4M3_LARGEST, quantize_weight, round_e4m3

__all__ = ["FP8", "INT8", "Format"]


@dataclass(frozen=True, slots=True)
class Format:
    """A number type with the scheme's `name`, the `largest` number that scales are made for, and its rounding.

    `round(weight, scale, axis)` answers the quantized weight; the scale is [] or runs along `axis`.
    """

    name: str
    dtype: ir.DataType
    largest: float
    round: Callable[[NDArray[Any], NDArray[np.float32], int], NDArray[Any]]

    def zeros(self, shape: tuple[int, ...]) -> ir.TensorProtocol:
        """Zero points, which TensorRT wants written out."""
        return ir.tensor(np.zeros(shape, self.dtype.numpy()), dtype=self.dtype)


INT8 = Format("int8", ir.DataType.INT8, 127, quantize_weight)
FP8 = Format("fp8", ir.DataType.FLOAT8E4M3FN, E4M3_LARGEST, round_e4m3)
