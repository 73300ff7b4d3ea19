"""MIL's operators that move, cut, join or make tensors without arithmetic on their numbers, in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FUNCTIONS"]


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Axes in another order."""
    return x.permute(_numbers(perm))


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """Another shape; 0 keeps an axis' size where the rank stays, -1 takes what is left."""
    sizes = _numbers(shape)
    kept = [x.shape[axis] if size == 0 and len(sizes) == x.ndim else size for axis, size in enumerate(sizes)]
    return x.reshape(kept)


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """Axes of size 1 at these places of the result."""
    rank = x.ndim + len(_numbers(axes))
    for axis in sorted(each % rank for each in _numbers(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without these axes of size 1, or without all of them."""
    return x.squeeze() if axes is None else x.squeeze(tuple(_numbers(axes)))


def concat(values: Sequence[Tensor], axis: Any, interleave: Any = False) -> Tensor:
    """Behind one another along an axis, or by turns."""
    along = int(axis) % values[0].ndim
    if not interleave:
        return torch.cat(tuple(values), along)
    return torch.stack(tuple(values), along + 1).flatten(along, along + 1)


def stack(values: Sequence[Tensor], axis: Any) -> Tensor:
    """Beside one another along a new axis."""
    return torch.stack(tuple(values), int(axis))


def split(x: Tensor, axis: Any, num_splits: Any = None, split_sizes: Tensor | None = None) -> Sequence[Tensor]:
    """Parts of given sizes, or equal ones."""
    if split_sizes is not None:
        return torch.split(x, _numbers(split_sizes), int(axis))
    return torch.chunk(x, int(num_splits), int(axis))


def gather(x: Tensor, indices: Tensor, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False) -> Tensor:
    """Rows of x along an axis; negative indices count from the end."""
    if int(batch_dims):
        along = int(axis) % x.ndim - 1
        return torch.stack([gather(*pair, along, int(batch_dims) - 1) for pair in zip(x, indices, strict=True)])
    along = int(axis) % x.ndim
    flat = _wrapped(indices, x.shape[along]).reshape(-1)
    return x.index_select(along, flat).reshape(*x.shape[:along], *indices.shape, *x.shape[along + 1 :])


def gather_along_axis(x: Tensor, indices: Tensor, axis: Any = 0, validate_indices: Any = False) -> Tensor:
    """At each place the element of x that its index names along the axis."""
    along = int(axis) % x.ndim
    return torch.gather(x, along, _wrapped(indices, x.shape[along]))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: Any = 0, validate_indices: Any = False) -> Tensor:
    """Slices of x at indices [..., N] of its first N axes."""
    if int(batch_dims):
        return torch.stack([gather_nd(*pair, int(batch_dims) - 1) for pair in zip(x, indices, strict=True)])
    return x[tuple(_wrapped(each, x.shape[axis]) for axis, each in enumerate(indices.unbind(-1)))]


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """From begin to end by steps; where a mask holds, from the first, to the last, or one index whose axis goes."""
    squeezed = _flags(squeeze_mask, x.ndim)
    chosen = _chosen(x, begin, end, stride, begin_mask, end_mask, squeezed)
    for axis, places in enumerate(chosen):
        whole = len(places) == x.shape[axis] and places.step == 1
        x = x if whole else x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x.squeeze(tuple(axis for axis, gone in enumerate(squeezed) if gone))


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """So many from begin on; -1 is all that are left."""
    for axis, (start, count) in enumerate(zip(_numbers(begin), _numbers(size), strict=True)):
        first = start % x.shape[axis] if start < 0 else start
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """x with the slice that `slice_by_index` would read replaced by the update. Raises ValueError for other sizes."""
    squeezed = _flags(squeeze_mask, x.ndim)
    chosen = _chosen(x, begin, end, stride, begin_mask, end_mask, squeezed)
    sizes = [len(places) for axis, places in enumerate(chosen) if not squeezed[axis]]
    if list(update.shape) != sizes:
        raise ValueError(f"an update {list(update.shape)} of a slice {sizes}")
    whole = x.clone()
    grid = torch.meshgrid(*(torch.tensor(list(places), dtype=torch.int64) for places in chosen), indexing="ij")
    whole[grid] = update.reshape([len(places) for places in chosen])
    return whole


def tile(x: Tensor, reps: Tensor) -> Tensor:
    """Each axis so many times."""
    return x.repeat(_numbers(reps))


def fill(shape: Tensor, value: Tensor) -> Tensor:
    """One value everywhere."""
    return torch.full(_numbers(shape), value.item(), dtype=value.dtype)


def fill_like(ref_tensor: Tensor, value: Tensor) -> Tensor:
    """One value everywhere, in the shape of another tensor."""
    return torch.full(ref_tensor.shape, value.item(), dtype=value.dtype)


def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """From start to below end by steps."""
    return torch.arange(start.item(), end.item(), step.item(), dtype=end.dtype)


def band_part(x: Tensor, lower: Any = -1, upper: Any = -1) -> Tensor:
    """Zero outside a band of the last two axes, so wide below and above the diagonal; -1 is all."""
    kept = x if int(lower) < 0 else x.triu(-int(lower))
    return kept if int(upper) < 0 else kept.tril(int(upper))


def shape(x: Tensor) -> Tensor:
    """The sizes of all axes."""
    return torch.tensor(x.shape, dtype=torch.int32)


def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Back to front along these axes, or all."""
    return x.flip(tuple(range(x.ndim)) if axes is None else tuple(_numbers(axes)))


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Any = 0.0) -> Tensor:
    """Begin and end of each of the last axes, the first of them first."""
    sizes = _numbers(pad)
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))
    widths = [each for pair in reversed(pairs) for each in pair]
    return F.pad(x, widths, value=float(constant_val)) if mode == "constant" else F.pad(x, widths, mode=mode)


def _chosen(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeezed: Sequence[bool],
) -> list[range]:
    """The places that a slice takes of each axis, by the rules of Python's own slices."""
    steps = [1] * x.ndim if stride is None else _numbers(stride)
    open_begin, open_end = _flags(begin_mask, x.ndim), _flags(end_mask, x.ndim)
    chosen = []
    for axis, (first, last) in enumerate(zip(_numbers(begin), _numbers(end), strict=True)):
        if squeezed[axis]:
            place = range(x.shape[axis])[first]
            chosen.append(range(place, place + 1))
            continue
        bounds = slice(None if open_begin[axis] else first, None if open_end[axis] else last, steps[axis])
        chosen.append(range(*bounds.indices(x.shape[axis])))
    return chosen


def _numbers(given: Tensor) -> list[int]:
    return [int(each) for each in given.reshape(-1).tolist()]


def _flags(given: Tensor | None, rank: int) -> list[bool]:
    return [False] * rank if given is None else [bool(each) for each in given.tolist()]


def _wrapped(indices: Tensor, size: int) -> Tensor:
    whole = indices.to(torch.int64)
    return torch.where(whole < 0, whole + size, whole)


FUNCTIONS: tuple[Callable[..., Tensor | Sequence[Tensor]], ...] = (
    band_part, concat, expand_dims, fill, fill_like, gather, gather_along_axis, gather_nd, pad, range_1d, reshape,
    reverse, shape, slice_by_index, slice_by_size, slice_update, split, squeeze, stack, tile, transpose,
)  # fmt: skip
