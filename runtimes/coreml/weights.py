"""MIL's `constexpr_` operators: weights that are stored small and made whole once, when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["FUNCTIONS"]


def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale · (data - offset), each scale over a block of the data whose sizes are those of data over scale."""
    shifted = data.float() if offset is None else data.float() - _spread(offset.float(), data)
    return _spread(scale, data) * shifted


def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, vector_axis: Any = None) -> Tensor:
    """Each index replaced by what it names in its block's table, [blocks..., entries, length].

    Entries of a length above 1 fill that many places along `vector_axis`.
    """
    blocks, (entries, length) = lut.shape[:-2], lut.shape[-2:]
    tables = torch.arange(blocks.numel()).reshape(blocks)
    places = _spread(tables, indices) * entries + indices.to(torch.int64)
    found = lut.reshape(-1, length)[places]
    if length == 1:
        return found.squeeze(-1)
    axis = int(vector_axis) % indices.ndim
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    """The numbers in order where the mask is 1, zeros elsewhere."""
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask.bool()] = nonzero_data
    return dense


def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """float16 as float32."""
    return source_val.float()


def _spread(small: Tensor, like: Tensor) -> Tensor:
    """Each element over its block, in the sizes of `like`. Raises ValueError where they do not divide."""
    for axis, size in enumerate(like.shape):
        if size % small.shape[axis]:
            raise ValueError(f"blocks {list(small.shape)} do not divide {list(like.shape)}")
        if small.shape[axis] != size:
            small = small.repeat_interleave(size // small.shape[axis], axis)
    return small


FUNCTIONS: tuple[Callable[..., Tensor], ...] = (
    constexpr_blockwise_shift_scale, constexpr_cast, constexpr_lut_to_dense, constexpr_sparse_to_dense,
)  # fmt: skip
