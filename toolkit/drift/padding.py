"""Padding: what a model answers at positions that nobody attends to has no meaning, so it is not drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.types import ModelSpec, Tensors

__all__ = ["at_attended"]

_MASK = "attention_mask"


def at_attended(outputs: Sequence[Tensors], inputs: Sequence[Tensors], spec: ModelSpec) -> list[Tensors]:
    """The outputs with zeros at padded positions, for outputs whose first axes are those of `attention_mask`.

    Runtimes differ there by design: a row that attends to nothing is zeros in one and a mean in the other. NaN and
    Inf stay, wherever they are. Models without an attention mask get their outputs back as they are.
    """
    axes = next((tensor.shape for tensor in spec.inputs if tensor.name == _MASK), None)
    if axes is None:
        return list(outputs)
    names = {tensor.name for tensor in spec.outputs if tensor.shape[: len(axes)] == axes}
    return [_zeroed(batch, fed[_MASK] != 0, names) for batch, fed in zip(outputs, inputs, strict=True)]


def _zeroed(batch: Tensors, attended: NDArray[np.bool_], names: set[str]) -> Tensors:
    if attended.all():
        return batch
    return {name: _keep(array, attended) if name in names else array for name, array in batch.items()}


def _keep(array: NDArray[Any], attended: NDArray[np.bool_]) -> NDArray[Any]:
    if array.shape[: attended.ndim] != attended.shape:
        return array
    mask = attended.reshape(attended.shape + (1,) * (array.ndim - attended.ndim))
    return np.where(mask | ~np.isfinite(array), array, array.dtype.type(0))
