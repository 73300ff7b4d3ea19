"""Weights that a file had packed already, written into the graph exactly: no integer and no scale is rounded again."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.block_nodes import Rounded, lazily
from quantize.blocks import BLOCK_SIZES, Grid
from quantize.nodes import map_tensor
from toolkit.errors import StageError
from toolkit.types import PackedWeight

__all__ = ["carry", "fits"]

_TOLERANCE = 1e-3
_ROWS = 1024


def fits(packed: PackedWeight | None, bits: int) -> bool:
    """Whether the file's grid takes no more than `bits` and is one that runtimes take."""
    return packed is not None and packed.bits <= bits and packed.block_size in BLOCK_SIZES


def carry(weight: ir.Value, packed: PackedWeight, axis: int, bits: Literal[4, 8]) -> Rounded:
    """The file's own blocks of a weight [K, N] (`axis` 0) or table [N, K] (`axis` 1), as signed integers.

    w = scale · codes + offset = scale · (codes - half) + (offset + half · scale), with half = 8 or 128: the last term
    is `offset` of the answer, which has none where it is zero everywhere. `bits` may be more than the file's.
    Raises StageError where the file's weight is not the graph's.
    """
    _check(weight, packed, axis)
    half = 1 << (packed.bits - 1)
    grid = Grid(bits, packed.block_size, symmetric=True)
    shape, by_block = packed.shape, (packed.shape[0], packed.shape[1] // packed.block_size)
    return Rounded(
        grid,
        axis,
        lazily(lambda: _turn(packed.codes().astype(np.int16) - half, axis), grid.dtype, _turned(shape, axis)),
        lazily(lambda: _turn(packed.scale(), axis), "float", _turned(by_block, axis)),
        lazily(lambda: np.zeros(_turned(by_block, axis), np.int8), grid.dtype, _turned(by_block, axis)),
        lazily(lambda: _turn(_rest(packed, half), axis), "float", _turned(by_block, axis))
        if _rest(packed, half).any()
        else None,
    )


def _rest(packed: PackedWeight, half: int) -> NDArray[np.float32]:
    return (packed.offset().astype(np.float64) + half * packed.scale().astype(np.float64)).astype(np.float32)


def _turn(array: NDArray[Any], axis: int) -> NDArray[Any]:
    return array.T if axis == 0 else array


def _turned(shape: tuple[int, int], axis: int) -> tuple[int, int]:
    return shape[::-1] if axis == 0 else shape


def _check(weight: ir.Value, packed: PackedWeight, axis: int) -> None:
    """Rows that were permuted on the way, or another file, would give a model that talks nonsense."""
    tensor = weight.const_value
    if tensor is None or tuple(tensor.shape) != _turned(packed.shape, axis):
        raise _unlike(weight, f"it is {list(packed.shape)} there and {weight.shape} transposed here")
    worst, largest = map_tensor(tensor, lambda array: _difference(_turn(array, axis), packed))
    if not worst <= _TOLERANCE * largest:
        raise _unlike(weight, f"they differ by up to {worst:.3g}, of weights up to {largest:.3g}")


def _difference(array: NDArray[Any], packed: PackedWeight) -> tuple[float, float]:
    codes, scale, offset = packed.codes(), packed.scale(), packed.offset()
    worst = 0.0
    for start in range(0, len(codes), _ROWS):
        rows = slice(start, start + _ROWS)
        blocks = codes[rows].reshape(-1, scale.shape[1], packed.block_size).astype(np.float32)
        values = blocks * scale[rows, :, None] + offset[rows, :, None]
        # The maximum of NaN and anything is NaN, which is no less than any bound.
        worst = float(np.maximum(worst, np.abs(values.reshape(len(values), -1) - array[rows]).max()))
    return worst, float(np.abs(array).max())


def _unlike(weight: ir.Value, what: str) -> StageError:
    return StageError(
        "quantize",
        f"the packed weight of the model's file is not the graph's '{weight.name}': {what}",
        hint="Export again from the same file, or use the scheme fp32 and quantize from there.",
    )
