"""nvfp4 arithmetic: float4e2m1 numbers in blocks of 16, a float8e4m3fn scale a block, one float32 scale a tensor.

w = q · (s · g): q one of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, s of E4M3, g such that the largest block's s
is 448 (NVIDIA, "Introducing NVFP4", 2025). In ONNX that is a DequantizeLinear whose scale comes from another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_dtypes import float4_e2m1fn, float8_e4m3fn
from numpy.typing import NDArray

from quantize.arithmetic import E4M3_LARGEST

__all__ = ["BLOCK", "E2M1_LARGEST", "Float4", "dequantize", "quantize", "tensor_scale"]

BLOCK = 16
"""How many numbers share a scale: what the tensor cores of sm120 multiply."""

E2M1_LARGEST = 6.0

_CHUNK = 1 << 20
_LOWEST_CODE, _HIGHEST_CODE = 1, 126
_AROUND = range(-4, 6)
"""Which neighbours of a block's scale are tried, as steps of E4M3's codes: from two thirds of it to one and a half."""


@dataclass(frozen=True, slots=True, eq=False)
class Float4:
    """A weight [K, N] in blocks along K: `numbers` float4e2m1 [K, N], `scale` float8e4m3fn [K / 16, N], `tensor` []."""

    numbers: NDArray[Any]
    scale: NDArray[Any]
    tensor: NDArray[np.float32]


def tensor_scale(absmax: float) -> NDArray[np.float32]:
    """The float32 scale g that makes `absmax` 6 · 448; 1 where that is no normal number.

    Raises ValueError where `absmax` is negative or not finite.
    """
    if not np.isfinite(absmax) or absmax < 0:
        raise ValueError("a scale needs a finite, non-negative range")
    scale = np.float32(absmax / (E2M1_LARGEST * E4M3_LARGEST))
    return np.asarray(scale if scale >= np.finfo(np.float32).tiny else 1.0, np.float32)


def quantize(weight: NDArray[Any]) -> Float4:
    """The nearest numbers of a weight [K, N], K a multiple of 16, ties to even.

    Of each block's scale and its neighbours in E4M3, the one whose rounding leaves the least squared error is taken:
    a block whose largest number becomes 4 keeps more of its middle than one where it becomes 6.
    Raises ValueError where a weight is NaN or Inf.
    """
    tensor = tensor_scale(float(max(weight.max(), -weight.min())))
    parts = [_quantize_blocks(blocks, tensor) for blocks in _chunks(weight)]
    numbers, scale = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
    return Float4(numbers.reshape(weight.shape), scale, tensor)


def dequantize(made: Float4) -> NDArray[np.float32]:
    """The float32 weight [K, N] that the numbers stand for."""
    scale = made.scale.astype(np.float32) * made.tensor
    return made.numbers.astype(np.float32) * scale.repeat(BLOCK, axis=0)


def _chunks(weight: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """[K / 16, 16, n], some columns at a time."""
    rows, columns = weight.shape
    step = max(1, _CHUNK // rows)
    for start in range(0, columns, step):
        part = np.ascontiguousarray(weight[:, start : start + step], np.float32)
        yield part.reshape(rows // BLOCK, BLOCK, -1)


def _quantize_blocks(blocks: NDArray[np.float32], tensor: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    absmax = np.abs(blocks).max(axis=1)
    wanted = np.minimum(absmax / (E2M1_LARGEST * tensor), E4M3_LARGEST)
    code = wanted.astype(float8_e4m3fn).view(np.uint8).astype(np.int16)
    best, error = code, np.full(absmax.shape, np.inf, np.float32)
    for offset in _AROUND:
        tried = np.clip(code + offset, _LOWEST_CODE, _HIGHEST_CODE)
        scale = (_scales(tried).astype(np.float32) * tensor)[:, None]
        found = np.square(_round(blocks / scale).astype(np.float32) * scale - blocks).sum(axis=1)
        best, error = np.where(found < error, tried, best), np.minimum(found, error)
    chosen = _scales(best)
    return _round(blocks / (chosen.astype(np.float32) * tensor)[:, None]), chosen


def _scales(codes: NDArray[Any]) -> NDArray[Any]:
    return codes.astype(np.uint8).view(float8_e4m3fn)


def _round(steps: NDArray[np.float32]) -> NDArray[Any]:
    rounded: NDArray[Any] = np.clip(steps, -E2M1_LARGEST, E2M1_LARGEST).astype(float4_e2m1fn)
    return rounded
