"""Block grids: integers of 4 or 8 bits that share a scale, and where asymmetric a zero point, along blocks of K.

The arithmetic is that of ONNX `DequantizeLinear` with `block_size` (opset 21): w = (q - zero) · scale. Symmetric grids
are signed with zero points 0 (int4 takes [-8, 7], int8 [-127, 127]), asymmetric ones unsigned (uint4, uint8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError

__all__ = ["BLOCK_SIZES", "Blocks", "Grid", "block_size_for", "codes", "dequantize", "nearest", "refine", "scales"]

BLOCK_SIZES = (16, 32, 64, 128)
"""What `MatMulNBits` and TensorRT both take."""

_SHRINK = np.linspace(0.95, 0.65, 7, dtype=np.float32)
_CHUNK = 1 << 22
_FITS = 4
_HQQ_ROUNDS, _HQQ_POWER, _HQQ_BETA, _HQQ_GROWTH = 20, 0.7, 10.0, 1.01

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grid:
    """Which integers there are, and how many weights along K share a scale.

    Raises UsageError for other widths than 4 and 8 bits and for block sizes that runtimes do not take.
    """

    bits: Literal[4, 8]
    block_size: int = 32
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"weights of {self.bits} bits are not supported", hint="Allowed are 4 and 8 bits.")
        if self.block_size not in BLOCK_SIZES:
            allowed = ", ".join(map(str, BLOCK_SIZES))
            raise UsageError(f"block size {self.block_size} is not supported", hint=f"Allowed are {allowed}.")

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - self.symmetric)) - 1

    @property
    def lowest(self) -> int:
        """The smallest integer; int8 leaves -128 out, so that negating a weight is exact."""
        if not self.symmetric:
            return 0
        return -8 if self.bits == 4 else -127

    @property
    def dtype(self) -> str:
        """The ONNX name of the integers' type."""
        return f"{'int' if self.symmetric else 'uint'}{self.bits}"


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """The scales of a weight [K, N]: `scale` float32 and `zero` int16, both [K / block_size, N] (zero is 0: symmetric).

    For a weight [N, K] whose blocks run along axis 1 both are [N, K / block_size].
    """

    grid: Grid
    scale: Float
    zero: NDArray[np.int16]


def block_size_for(width: int, wanted: int) -> int | None:
    """`wanted`, or the largest allowed size below it that divides `width`; None where no size does."""
    sizes = [size for size in BLOCK_SIZES if size <= wanted and width % size == 0]
    return max(sizes, default=None)


def scales(weight: NDArray[Any], grid: Grid, axis: int = 0, importance: NDArray[Any] | None = None) -> Blocks:
    """The scales and zero points of a 2-D weight, blocks along `axis`, which the block size divides.

    Of several ranges per block, from the whole one down to 0.65 of it, the one whose rounding leaves the least squared
    error is taken; `importance` [K] weighs it (the mean square of each input channel). 8 bits take the whole range.
    Raises ValueError where a weight is NaN or Inf.
    """
    parts = [_search(part, grid, axis + 1, _importance(importance, axis, grid)) for part in _chunks(weight, grid, axis)]
    joined = (np.concatenate(arrays, axis=1 - axis) for arrays in zip(*parts, strict=True))
    scale, zero = (np.ascontiguousarray(array.squeeze(axis + 1)) for array in joined)
    return Blocks(grid, scale, zero.astype(np.int16))


def codes(weight: NDArray[Any], blocks: Blocks, axis: int = 0) -> NDArray[np.int16]:
    """The nearest integers of the grid, shaped as the weight; halves go to even."""
    scale, zero = (np.expand_dims(each, axis + 1) for each in (blocks.scale, blocks.zero))
    steps = _view(np.asarray(weight, dtype=np.float32), blocks.grid, axis) / scale
    return _rounded(steps, zero, blocks.grid).astype(np.int16).reshape(weight.shape)


def dequantize(integers: NDArray[Any], blocks: Blocks, axis: int = 0) -> Float:
    """The float32 weights that the integers stand for."""
    zero, scale = np.expand_dims(blocks.zero, axis + 1), np.expand_dims(blocks.scale, axis + 1)
    steps: Float = _view(integers, blocks.grid, axis).astype(np.float32)
    steps -= zero
    steps *= scale
    return steps.reshape(integers.shape)


def nearest(weight: NDArray[Any], grid: Grid, axis: int = 0) -> tuple[NDArray[np.int16], Blocks]:
    """Round to nearest: the integers and their scales."""
    blocks = scales(weight, grid, axis)
    return codes(weight, blocks, axis), blocks


def refine(weight: NDArray[Any], blocks: Blocks, axis: int = 0) -> Blocks:
    """Fit zero points to a heavy-tailed error, round them, and fit the scales to the integers by least squares.

    Half-quadratic quantization (Badri and Shaji, 2023): the error is split from its sparse part by the shrinkage of the
    0.7 norm, and the zero point is the mean of what is left. Zero points stay integers, which runtimes are fast with.
    A block whose squared error does not fall keeps its scale and zero point. A symmetric grid's scales are fitted only.
    """
    grid, inner = blocks.grid, axis + 1
    view = _view(np.asarray(weight, dtype=np.float32), grid, axis)
    scale, zero = np.expand_dims(blocks.scale, inner), np.expand_dims(blocks.zero, inner).astype(np.float32)
    zeros = [zero] if grid.symmetric else [zero, np.rint(_half_quadratic(view, scale, zero, grid, inner))]
    one = np.ones((1, 1, 1), np.float32)
    best, error = (scale, zero), _squares(view, scale, zero, grid, one, inner)
    for tried in zeros:
        fitted = _least_squares(view, scale, tried, grid, inner)
        found = _squares(view, fitted, tried, grid, one, inner)
        best = np.where(found < error, fitted, best[0]), np.where(found < error, tried, best[1])
        error = np.minimum(found, error)
    return Blocks(grid, best[0].squeeze(inner), best[1].squeeze(inner).astype(np.int16))


def _least_squares(view: Float, scale: Float, zero: Float, grid: Grid, axis: int) -> Float:
    """The scale that fits the integers best, and the integers that fit the scale best, in turn."""
    for _ in range(_FITS):
        steps = _rounded(view / scale, zero, grid) - zero
        fitted = (view * steps).sum(axis=axis, keepdims=True) / np.maximum(np.square(steps).sum(axis, keepdims=True), 1)
        scale = np.where(fitted < np.finfo(np.float32).tiny, scale, fitted)
    return scale


def _half_quadratic(view: Float, scale: Float, zero: Float, grid: Grid, axis: int) -> Float:
    beta = _HQQ_BETA
    for _ in range(_HQQ_ROUNDS):
        steps = np.clip(np.rint(view / scale + zero), grid.lowest, grid.highest).astype(np.float32)
        error = view - (steps - zero) * scale
        magnitude = np.abs(error)
        shrink = np.power(np.maximum(magnitude, 1e-8), _HQQ_POWER - 1) / beta
        sparse = np.sign(error) * np.maximum(magnitude - shrink, 0)
        zero = np.mean(steps - (view - sparse) / scale, axis=axis, keepdims=True)
        zero = np.asarray(np.clip(zero, grid.lowest, grid.highest), dtype=np.float32)
        beta *= _HQQ_GROWTH
    return zero


def _view(array: NDArray[Any], grid: Grid, axis: int) -> NDArray[Any]:
    """[K, N] as [K / block_size, block_size, N], or [N, K] as [N, K / block_size, block_size]."""
    shape = list(array.shape)
    shape[axis : axis + 1] = [shape[axis] // grid.block_size, grid.block_size]
    return array.reshape(shape)


def _chunks(weight: NDArray[Any], grid: Grid, axis: int) -> Iterator[Float]:
    """The weight's blocks, some rows of the other axis at a time: what a search holds does not grow with it."""
    other = 1 - axis
    step = max(1, _CHUNK // weight.shape[axis])
    for start in range(0, weight.shape[other], step):
        rows = slice(start, start + step)
        part = weight[:, rows] if axis == 0 else weight[rows]
        view: Float = _view(np.ascontiguousarray(part, dtype=np.float32), grid, axis)
        if not np.isfinite(view).all():
            raise ValueError("NaN or Inf")
        yield view


def _importance(importance: NDArray[Any] | None, axis: int, grid: Grid) -> Float:
    if importance is None:
        return np.ones((1, 1, 1), np.float32)
    by_block = np.asarray(importance, dtype=np.float32).reshape(-1, grid.block_size)
    return by_block[:, :, None] if axis == 0 else by_block[None]


def _search(view: Float, grid: Grid, axis: int, importance: Float) -> tuple[Float, Float]:
    low, high = view.min(axis=axis, keepdims=True), view.max(axis=axis, keepdims=True)
    best_scale, best_zero = _affine(low, high, grid)
    if grid.bits == 8:
        return best_scale, best_zero
    best_error = _squares(view, best_scale, best_zero, grid, importance, axis)
    for shrink in _SHRINK:
        scale, zero = _affine(low * shrink, high * shrink, grid)
        error = _squares(view, scale, zero, grid, importance, axis)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
    return best_scale, best_zero


def _squares(view: Float, scale: Float, zero: Float, grid: Grid, importance: Float, axis: int) -> Float:
    error = _rounded(view / scale, zero, grid)
    error -= zero
    error *= scale
    error -= view
    np.square(error, out=error)
    error *= importance
    return np.asarray(error.sum(axis=axis, keepdims=True))


def _affine(low: Float, high: Float, grid: Grid) -> tuple[Float, Float]:
    """The scale and the integer zero point of a range; a block of zeros gets scale 1."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    span = np.maximum(-low, high) if grid.symmetric else high - low
    scale = np.asarray(span / grid.highest, dtype=np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1
    zero = np.zeros_like(scale) if grid.symmetric else np.clip(np.rint(-low / scale), 0, grid.highest)
    return scale, np.asarray(zero, dtype=np.float32)


def _rounded(steps: Float, zero: NDArray[Any], grid: Grid) -> Float:
    np.rint(steps, out=steps)
    steps += zero
    return np.clip(steps, grid.lowest, grid.highest, out=steps)
