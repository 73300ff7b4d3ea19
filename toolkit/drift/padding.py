"""Padding: what a model answers at positions that nobody attends to has no meaning, so it is not drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.types import ModelSpec, Tensors, TensorSpec

__all__ = ["at_attended"]

_MASK, _TOKENS = "attention_mask", "input_ids"

Axes = tuple[int, int]


def at_attended(outputs: Sequence[Tensors], inputs: Sequence[Tensors], spec: ModelSpec) -> list[Tensors]:
    """The outputs with zeros at padded positions, for outputs that have the axes of `attention_mask` once each.

    A decoder's mask covers the past too: its cache has the mask's axes, its logits those of `input_ids`, which are the
    mask's last columns. Runtimes differ there by design: a row that attends to nothing is zeros in one and a mean in
    the other. NaN and Inf stay, wherever they are. Models without an attention mask get their outputs back as they are.
    """
    if not any(tensor.name == _MASK for tensor in spec.inputs):
        return list(outputs)
    places = {tensor.name: axes for tensor in spec.outputs if (axes := _axes(tensor, spec))}
    return [_zeroed(batch, fed[_MASK] != 0, places) for batch, fed in zip(outputs, inputs, strict=True)]


def _axes(output: TensorSpec, spec: ModelSpec) -> Axes | None:
    """Where the output has the batch and the positions of the mask, or of the tokens."""
    for tensor in spec.inputs:
        if tensor.name in (_MASK, _TOKENS) and all(output.shape.count(axis) == 1 for axis in tensor.shape):
            rows, positions = (output.shape.index(axis) for axis in tensor.shape)
            return rows, positions
    return None


def _zeroed(batch: Tensors, attended: NDArray[np.bool_], places: dict[str, Axes]) -> Tensors:
    if attended.all():
        return batch
    return {name: _keep(array, attended, places[name]) if name in places else array for name, array in batch.items()}


def _keep(array: NDArray[Any], attended: NDArray[np.bool_], axes: Axes) -> NDArray[Any]:
    if array.ndim <= max(axes):
        return array
    last = attended[:, -array.shape[axes[1]] :]
    if last.shape != tuple(array.shape[axis] for axis in axes):
        return array
    shape = [1] * array.ndim
    for axis, size in zip(axes, last.shape, strict=True):
        shape[axis] = size
    return np.where(last.reshape(shape) | ~np.isfinite(array), array, array.dtype.type(0))
