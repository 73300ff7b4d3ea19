"""AWQ: loud input channels are scaled up before their weights are rounded, and down again where they are made.

Lin et al., "AWQ" (2023): x · W = (x / s) · (s · W); with s = rms(x)^alpha the channels that matter most use more of
their blocks' range. Which alpha is decided by the error of the products on the calibration data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.blocks import Grid, codes, dequantize, scales
from quantize.gptq import Hessian, output_error

__all__ = ["choose_factor"]

_EXPONENTS = (0.15, 0.3, 0.45, 0.6, 0.75)
_LEAST_GAIN = 0.02
_LIMIT = 2.0**8


def choose_factor(weights: Sequence[NDArray[Any]], hessian: Hessian, grid: Grid) -> NDArray[np.float32] | None:
    """The factors s [K] for weights [K, N] that read one tensor; None where none gains two per cent of the error.

    Raises ValueError where a weight is NaN or Inf.
    """
    plain = _error(weights, hessian, grid, np.ones(hessian.width, np.float32))
    candidates = (_factor(hessian, exponent) for exponent in _EXPONENTS)
    errors = [(_error(weights, hessian, grid, factor), factor) for factor in candidates]
    best, factor = min(errors, key=lambda each: each[0])
    return factor if best < (1 - _LEAST_GAIN) * plain else None


def _factor(hessian: Hessian, exponent: float) -> NDArray[np.float32]:
    loudness = np.sqrt(hessian.mean_square.astype(np.float64))
    alive = loudness > 0
    logs = exponent * np.log(np.where(alive, loudness, 1))
    # Only ratios matter: a mean of 1 keeps the normalisation's weight near what it was.
    factor = np.exp(logs - logs[alive].mean())
    return np.where(alive, np.clip(factor, 1 / _LIMIT, _LIMIT), 1).astype(np.float32)


def _error(weights: Sequence[NDArray[Any]], hessian: Hessian, grid: Grid, factor: NDArray[np.float32]) -> float:
    total = 0.0
    for weight in weights:
        raised = weight * factor[:, None]
        blocks = scales(raised, grid)
        back = dequantize(codes(raised, blocks), blocks) / factor[:, None]
        total += output_error(weight, back, hessian)[0]
    return total
