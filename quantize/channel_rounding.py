"""int8 weights of one scale a channel, rounded by what their Linears read: GPTQ behind activations in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.arithmetic import channel_absmax, dequantize, symmetric_scale
from quantize.gptq import Float, Hessian, in_turn
from quantize.linears import Linear, Rounded, not_finite_weight
from quantize.sequential import walk
from quantize.smoothing import Group, find_groups
from toolkit.types import Calibration

__all__ = ["round_by_data", "round_channels"]

_ROWS = 8192
"""Rows that a Hessian is made of at most: more move no weight, and cost as much as the model itself."""
_LARGEST = 127


def round_by_data(model: ir.Model, linears: Iterable[Linear], calibration: Calibration) -> dict[ir.Value, Rounded]:
    """The weights of the MatMuls and Gemms among `linears`; convolutions and shared weights are not among them.

    Weights are rounded in graph order, each on what it reads behind those rounded before it, so activations that are
    quantized already are part of it. The graph is not touched.
    Raises StageError where a weight or an activation is NaN or Inf.
    """
    found = list(linears)
    made: dict[ir.Value, Rounded] = {}
    alone = [each for each in found if len(each.weight.uses()) == 1]
    walk(model, find_groups(alone), calibration, partial(_round_group, made), rows=_ROWS)
    return made


def round_channels(weight: NDArray[Any], hessian: Hessian) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The integers [K, N] in [-127, 127] of a weight [K, N], and their scales [N] by its largest magnitudes.

    Raises ValueError where a weight is NaN or Inf.
    """
    scale = symmetric_scale(channel_absmax(weight, 1))

    def nearest(_: int, values: Float) -> tuple[NDArray[Any], Float]:
        steps = np.clip(np.rint(values / scale), -_LARGEST, _LARGEST)
        return steps, steps * scale

    return in_turn(weight, hessian, nearest, np.int8), scale


def _round_group(made: dict[ir.Value, Rounded], group: Group, hessian: Hessian) -> Mapping[str, NDArray[Any]]:
    weights: dict[str, NDArray[Any]] = {}
    for linear in group.linears:
        made[linear.weight] = integers, scale = _rounded(linear, hessian)
        weights[str(linear.weight.name)] = dequantize(integers, scale, linear.axis)
    return weights


def _rounded(linear: Linear, hessian: Hessian) -> Rounded:
    weight = linear.matrix()
    try:
        integers, scale = round_channels(weight, hessian)
    except ValueError as error:
        raise not_finite_weight(linear) from error
    return np.ascontiguousarray(integers if linear.axis == 1 else integers.T), scale
