"""How strongly each activation is smoothed, tried on real rows: the strength whose products are nearest to fp32.

Ranges come from every second batch of the calibration data and the rows that are scored from those between, so that a
strength is not chosen for fitting the very rows that its range was made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.arithmetic import affine_scale, channel_absmax, dequantize, quantize_weight, symmetric_scale
from quantize.calibration import Channels, measure_channels
from quantize.histogram import Range
from quantize.sampled_rows import sample_rows
from quantize.smoothing import Group, divisors_at, worthwhile
from toolkit.types import Calibration, QuantConfig, Tensors

__all__ = ["ALPHAS", "product_error", "search_smoothing"]

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
_QUIET = (0.75, 0.97)
"""Shares of the channels that are left alone where only the louder ones are brought down to them."""
_ROWS = 384
_LEFT_BY_GPTQ = 0.4
"""The share of the weights' rounding error that GPTQ leaves: 0.3 to 0.5 of its energy, by how rows are correlated."""

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """The weights [K, N] of a group side by side, and rows [R, K] to score them on."""

    weight: Float
    rows: Float
    range_of: Channels
    recipe: QuantConfig

    def error(self, divisors: Float) -> float:
        """The squared error of the products, divided by the share of it that stays where GPTQ rounds the weights."""
        return product_error(self.weight, self.rows, self.range_of.range(divisors), divisors, self.recipe)


def search_smoothing(
    model: ir.Model, groups: Sequence[Group], recipe: QuantConfig, calibration: Calibration
) -> dict[str, Float]:
    """The divisors s [K] of every activation that gains from them, by name, as they score best on real rows."""
    found: dict[str, Float] = {}
    if not groups:
        return found
    ranges = measure_channels(model, {group.activation: group.width for group in groups}, _every_second(calibration, 0))
    others = _every_second(calibration, 1)
    steps = {name: max(1, held.rows // _ROWS) for name, held in ranges.items()}
    rows = sample_rows(model, groups, steps, others)
    for group in groups:
        name = str(group.activation.name)
        chosen = _best(group, _Trial(_weight(group), rows.pop(name), ranges[name], recipe))
        if chosen is not None:
            found[name] = chosen
    return found


def product_error(weight: Float, rows: Float, bound: Range, divisors: Float, recipe: QuantConfig) -> float:
    """The squared error of `rows` [R, K] times `weight` [K, N] where both are rounded after division by s [K].

    The errors of activations and weights are taken for independent.
    """
    activation = _rounded_rows(rows / divisors, bound, recipe) * divisors - rows
    scaled = weight * divisors[:, None]
    scale = symmetric_scale(channel_absmax(scaled, 1))
    error = dequantize(quantize_weight(scaled, scale, 1), scale, 1) / divisors[:, None] - weight
    left = _LEFT_BY_GPTQ if recipe.rounding == "gptq" else 1.0
    return _energy(activation @ weight) + left * _energy(rows @ error)


def _best(group: Group, trial: _Trial) -> Float | None:
    if not np.isfinite(trial.weight).all() or not len(trial.rows):
        return None
    plain = trial.error(np.ones(group.width, np.float32))
    tried = _candidates(trial.range_of.absmax, np.abs(trial.weight).max(axis=1).astype(np.float64))
    errors = [trial.error(each) for each in tried]
    best = int(np.argmin(errors))
    return tried[best] if worthwhile(group, plain, errors[best]) else None


def _candidates(amax: NDArray[np.float64], wmax: NDArray[np.float64]) -> list[Float]:
    """SmoothQuant at several strengths, and loud channels alone brought down to the loudest of the others."""
    alive = (amax > 0) & (wmax > 0)
    if not alive.any():
        return [np.ones(amax.shape, np.float32)]
    limits = np.quantile(amax[alive], _QUIET)
    loud = [np.where(alive, np.maximum(amax / limit, 1), 1).astype(np.float32) for limit in limits]
    return [*(divisors_at(amax, wmax, alpha) for alpha in ALPHAS), *loud]


def _rounded_rows(rows: Float, bound: Range, recipe: QuantConfig) -> Float:
    if recipe.activations == "uint8":
        tokens = recipe.ranges == "per-token"
        low, high = (rows.min(1, keepdims=True), rows.max(1, keepdims=True)) if tokens else (bound.min, bound.max)
        scale, zero = affine_scale(low, high)
        lowest, highest, offset = 0, 255, np.float32(zero)
    else:
        scale, offset, lowest, highest = symmetric_scale(bound.absmax), np.float32(0), -128, 127
    steps: Float = np.clip(np.rint(rows / scale) + offset, lowest, highest)
    return (steps - offset) * scale


def _weight(group: Group) -> Float:
    return np.concatenate([linear.matrix() for linear in group.linears], axis=1)


def _every_second(calibration: Calibration, first: int) -> Calibration:
    """The batches from the first or the second one on; all of them where there is but one."""

    def batches() -> Iterator[Tensors]:
        picked = list(islice(calibration.batches(), 2))
        return islice(calibration.batches(), first if len(picked) > 1 else 0, None, 2)

    return replace(calibration, batches=batches)


def _energy(product: NDArray[Any]) -> float:
    return float(np.einsum("rn,rn->", product, product, dtype=np.float64))
