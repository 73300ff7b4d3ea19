"""GPTQ: weights rounded one input channel at a time, the error of each made good by those that come after.

Frantar et al., "GPTQ" (2022), with activation order and static groups: every block's scale is fixed from the weight as
it was, then the channels are rounded from the most to the least active, so that no reordering is left in the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantize.blocks import Blocks, Grid, scales

__all__ = ["Hessian", "Nearest", "gptq", "in_turn", "output_error"]

_DAMPING = 0.01
_PANEL = 128

Float = NDArray[np.float32]
Nearest = Callable[[int, Float], tuple[NDArray[Any], Float]]
"""Of input channel k's weights [N] the codes, and the weights that those stand for."""


@dataclass(slots=True, eq=False)
class Hessian:
    """The sum of xᵀx over the rows x [K] that a Linear read: `total` [K, K] float64, and how many rows."""

    width: int
    rows: int = 0
    total: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros((self.width, self.width))

    def add(self, activation: NDArray[Any]) -> None:
        """Add the rows of [..., K]. Raises ValueError where one is NaN or Inf."""
        rows = np.ascontiguousarray(activation.reshape(-1, self.width), dtype=np.float32)
        if not np.isfinite(rows).all():
            raise ValueError("NaN" if np.isnan(rows).any() else "Inf")
        self.total += rows.T @ rows
        self.rows += len(rows)

    @property
    def mean_square(self) -> Float:
        """The mean square of each input channel [K]; 1 everywhere where none was ever active."""
        power = np.diag(self.total) / max(self.rows, 1)
        return (power if power.any() else np.ones(self.width)).astype(np.float32)

    def divided(self, factor: NDArray[np.floating]) -> Hessian:
        """That of x / `factor` [K]."""
        made = Hessian(self.width, self.rows)
        made.total = self.total / np.outer(factor, factor)
        return made


def gptq(weight: NDArray[Any], hessian: Hessian, grid: Grid) -> tuple[NDArray[np.int16], Blocks]:
    """The integers [K, N] of a weight [K, N] and their scales, blocks along K.

    Raises ValueError where a weight is NaN or Inf.
    """
    blocks = scales(weight, grid, importance=hessian.mean_square)

    def nearest(channel: int, values: Float) -> tuple[NDArray[Any], Float]:
        scale, zero = blocks.scale[channel // grid.block_size], blocks.zero[channel // grid.block_size]
        steps = np.clip(np.rint(values / scale) + zero, grid.lowest, grid.highest)
        return steps, (steps - zero) * scale

    return in_turn(weight, hessian, nearest, np.int16), blocks


def in_turn(weight: NDArray[Any], hessian: Hessian, nearest: Nearest, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """The codes [K, N] of a weight whose input channels are rounded by `nearest`, from the most active to the least."""
    order = np.argsort(-np.diag(hessian.total), kind="stable")
    factor = _inverse_factor(hessian.total[np.ix_(order, order)])
    left = np.ascontiguousarray(weight[order], dtype=np.float32)
    made = np.empty(left.shape, dtype)
    for start in range(0, len(order), _PANEL):
        stop = min(start + _PANEL, len(order))
        errors = _panel(left, made, slice(start, stop), factor, order, nearest)
        left[stop:] -= factor[start:stop, stop:].T @ errors
    found = np.empty_like(made)
    found[order] = made
    return found


def output_error(weight: NDArray[Any], rounded: NDArray[Any], hessian: Hessian) -> tuple[float, float]:
    """The squared error of x · `rounded` [K, N] over the rows that were seen, and the square of x · `weight`."""
    error = np.asarray(rounded, dtype=np.float32) - weight
    return _energy(error, hessian), _energy(np.asarray(weight, dtype=np.float32), hessian)


def _panel(
    left: Float, made: NDArray[Any], rows: slice, factor: Float, order: NDArray[np.intp], nearest: Nearest
) -> Float:
    """Round the channels of one panel in turn; answers each one's error over its pivot, [panel, N]."""
    errors = np.empty_like(left[rows])
    for index, row in enumerate(range(rows.start, rows.stop)):
        made[row], rounded = nearest(int(order[row]), left[row])
        errors[index] = (left[row] - rounded) / factor[row, row]
        left[row + 1 : rows.stop] -= np.outer(factor[row, row + 1 : rows.stop], errors[index])
    return errors


def _inverse_factor(hessian: NDArray[np.float64]) -> Float:
    """The upper Cholesky factor of the damped inverse; channels that were never active get a pivot of their own.

    Where H = R Rᵀ with R upper, which is the Cholesky factor of H read backwards, R⁻¹ is that factor: one triangle is
    inverted in place of a matrix that would have to be factored again.
    """
    diagonal = np.diag(hessian)
    damped = hessian + np.diag(np.where(diagonal > 0, _DAMPING * diagonal.mean(), 1.0) + 1e-12)
    for _ in range(6):
        lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(damped[::-1, ::-1].copy()))
        if not failed:
            unit = torch.eye(len(damped), dtype=torch.float64)
            found: Float = (
                torch.linalg.solve_triangular(lower, unit, upper=False).numpy()[::-1, ::-1].astype(np.float32)
            )
            return found
        damped += np.diag(np.full(len(damped), 0.1 * diagonal.mean() + 1e-6))
    # A Hessian that damping cannot mend says nothing about the order of errors: plain rounding is left.
    return np.eye(len(damped), dtype=np.float32)


def _energy(weight: Float, hessian: Hessian) -> float:
    return float(np.einsum("kn,kn->", weight, hessian.total.astype(np.float32) @ weight, dtype=np.float64))
