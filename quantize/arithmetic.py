"""Symmetric 8-bit arithmetic, int8 and float8e4m3fn: scales, rounding, and their inverse.

The arithmetic is that of ONNX `QuantizeLinear` and `DequantizeLinear` (opset 23) with zero point 0:
q = saturate(round_half_to_even(x / scale)), x' = q · scale. float8e4m3fn (Micikevicius et al., "FP8 formats for deep
learning", 2022) has 4 bits of exponent and 3 of mantissa, no infinity, and 448 as its largest number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_dtypes import float8_e4m3fn
from numpy.typing import NDArray

__all__ = [
    "E4M3_LARGEST",
    "affine_scale",
    "channel_absmax",
    "dequantize",
    "quantize_activation",
    "quantize_weight",
    "round_e4m3",
    "symmetric_scale",
]

E4M3_LARGEST = 448.0
"""The largest finite number of float8e4m3fn."""

_QMAX = 127


def symmetric_scale(absmax: float | NDArray[Any], largest: float = _QMAX) -> NDArray[np.float32]:
    """The float32 scale that maps `absmax` to `largest`; same shape as `absmax`.

    An all-zero tensor gets scale 1 (it stays zero), as does one so small that its scale is subnormal.
    Raises ValueError where `absmax` is negative or not finite.
    """
    bound = np.asarray(absmax, dtype=np.float64)
    if not np.isfinite(bound).all() or (bound < 0).any():
        raise ValueError("a scale needs a finite, non-negative range")
    scale = (bound / largest).astype(np.float32)
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)


def affine_scale(
    low: float | NDArray[Any], high: float | NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The float32 scale and the uint8 zero point that map `low` to 0 and `high` to 255, both of their shape.

    The range is widened to hold 0, which is then a step of its own: padding stays exact.
    Raises ValueError where a bound is not finite.
    """
    bottom, top = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scale = symmetric_scale(top - bottom, 255)
    return scale, np.asarray(np.clip(np.rint(-bottom / scale), 0, 255), np.uint8)


def channel_absmax(weight: NDArray[Any], axis: int) -> NDArray[Any]:
    """The largest magnitude of each slice of `weight` along `axis`: weight [K, N], axis 1 gives [N].

    NaN and Inf in the weight stay visible in the answer.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    # Two reductions instead of abs(), which would copy the weight.
    absmax: NDArray[Any] = np.maximum(weight.max(axis=others), -weight.min(axis=others))
    return absmax


def quantize_weight(weight: NDArray[Any], scale: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """int8 in [-127, 127], so that negating a weight is exact; `scale` is [] or runs along `axis`."""
    return _round(weight, _along(scale, axis, weight.ndim), -_QMAX)


def quantize_activation(values: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """int8 in [-128, 127], as `QuantizeLinear` saturates; `scale` is []."""
    return _round(values, scale, -_QMAX - 1)


def round_e4m3(values: NDArray[Any], scale: NDArray[np.float32], axis: int = 0) -> NDArray[Any]:
    """float8e4m3fn numbers, saturated at 448; `scale` is [] or runs along `axis`."""
    steps = values.astype(np.float32) / _along(scale, axis, values.ndim)
    quantized: NDArray[Any] = np.clip(steps, -E4M3_LARGEST, E4M3_LARGEST, out=steps).astype(float8_e4m3fn)
    return quantized


def dequantize(quantized: NDArray[Any], scale: NDArray[np.float32], axis: int = 0) -> NDArray[np.float32]:
    """The float32 values that the quantized numbers stand for; `scale` is [] or runs along `axis`."""
    return quantized.astype(np.float32) * _along(scale, axis, quantized.ndim)


def _round(values: NDArray[Any], scale: NDArray[np.float32], lowest: int) -> NDArray[np.int8]:
    steps = values.astype(np.float32) / scale
    np.rint(steps, out=steps)
    return np.clip(steps, lowest, _QMAX, out=steps).astype(np.int8)


def _along(scale: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    if scale.ndim == 0:
        return scale
    return scale.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
