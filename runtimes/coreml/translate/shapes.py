"""Operators that move, cut and join tensors, and arithmetic on their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from runtimes.coreml.translate.mil import Var
from runtimes.coreml.translate.stored import stored_of
from runtimes.coreml.translate.values import Node, Translate

__all__ = ["SHAPES", "sizes_of"]

_LARGEST = 2**31 - 1


def sizes_of(var: Var) -> list[int | None]:
    """The sizes of a variable's axes, None for those that are known only when the program runs."""
    return [int(size) if isinstance(size, (int, np.integer)) else None for size in var.shape]


def _shape(node: Node) -> Var:
    x = node.input(0)
    rank = len(x.shape)
    start, end = (_within(node.integer(name, default), rank) for name, default in (("start", 0), ("end", rank)))
    fixed = sizes_of(x)[start:end]
    if None not in fixed:
        return node.emit("identity", x=np.array(fixed, np.int32))
    whole = node.emit("shape", x=x)
    return whole if end - start == rank else node.emit("slice_by_index", x=whole, begin=[start], end=[end])


def _within(axis: int, rank: int) -> int:
    return min(max(axis + rank if axis < 0 else axis, 0), rank)


def _reshape(node: Node) -> Var:
    """With at most one size unknown that one is -1; else the unknown ones are read off the tensor itself."""
    x, wanted = node.input(0), node.ints(1)
    have = sizes_of(x)
    if wanted is not None and not node.integer("allowzero", 0):
        # ONNX counts the axes that 0 copies from the left, MIL from the right.
        kept = [index for index, size in enumerate(wanted) if size == 0]
        sizes: list[int | None] = [have[index] if size == 0 else size for index, size in enumerate(wanted)]
        named = {index: index for index in kept}
    else:
        sizes = _declared(node, wanted)
        named = _matching(node, sizes)
    return _reshaped(node, x, sizes, named)


def _reshaped(node: Node, x: Var, sizes: list[int | None], named: Mapping[int, int]) -> Var:
    """`named` says which axis of `x` has a size that is not known."""
    unknown = [index for index, size in enumerate(sizes) if size is None]
    if len(unknown) + sizes.count(-1) <= 1:
        shape: object = np.array([-1 if size is None else size for size in sizes], np.int32)
    elif sum(index not in named for index in unknown) + sizes.count(-1) <= 1:
        parts = [
            _size(node, x, named[index])
            if size is None and index in named
            else np.array([-1 if size is None else size], np.int32)
            for index, size in enumerate(sizes)
        ]
        shape = node.emit("concat", values=parts, axis=0)
    else:
        shape = node.input(1)
    return node.emit("reshape", x=x, shape=shape)


def _declared(node: Node, wanted: Sequence[int] | None) -> list[int | None]:
    """The sizes that the graph declares for the result."""
    if wanted is not None:
        return list(wanted)
    shape = node.node.outputs[0].shape
    if shape is None:
        known = node.input(1).val
        return [None] * node.input(1).shape[0] if known is None else [int(size) for size in known]
    return [dim if isinstance(dim, int) else None for dim in shape]


def _matching(node: Node, sizes: Sequence[int | None]) -> dict[int, int]:
    """For the axes of the result whose size is a name: the axis of the input that has the same one."""
    made, read = node.node.outputs[0].shape, node.given(0).shape
    if made is None or read is None:
        return {}
    names = {str(dim.value): axis for axis, dim in enumerate(read) if isinstance(dim, ir.SymbolicDim) and dim.value}
    return {
        axis: names[str(made[axis].value)]
        for axis, size in enumerate(sizes)
        if size is None and str(made[axis].value) in names
    }


def _size(node: Node, x: Var, axis: int) -> Var:
    """The size of an axis, int32 [1]."""
    return node.emit("slice_by_index", x=node.emit("shape", x=x), begin=[axis], end=[axis + 1])


def _expand(node: Node) -> Var:
    """Axes of size 1 repeated as often as the shape says; those that have the size already are left alone."""
    shape, x = node.input(1), node.input(0)
    rank = int(shape.shape[0])
    if len(x.shape) < rank:
        x = node.emit("expand_dims", x=x, axes=list(range(rank - len(x.shape))))
    wanted: Sequence[int | None] = node.ints(1) or [None] * rank
    lead = len(x.shape) - rank
    have = sizes_of(x)[lead:]
    parts = [_repeats(node, shape, axis, size, wanted[axis]) for axis, size in enumerate(have)]
    return _tiled(node, x, [1] * lead + parts)


def _repeats(node: Node, shape: Var, axis: int, size: int | None, wanted: int | None) -> int | Var:
    if size != 1:
        return 1
    declared = node.node.outputs[0].shape
    known = wanted if wanted is not None else declared[axis] if declared is not None else None
    if isinstance(known, int):
        return known
    return node.emit("slice_by_index", x=shape, begin=[axis], end=[axis + 1])


def _tiled(node: Node, x: Var, repeats: Sequence[int | Var]) -> Var:
    if all(isinstance(count, int) for count in repeats):
        return x if set(repeats) == {1} else node.emit("tile", x=x, reps=list(repeats))
    parts = [np.array([count], np.int32) if isinstance(count, int) else count for count in repeats]
    return node.emit("tile", x=x, reps=node.emit("concat", values=parts, axis=0))


def _tile(node: Node) -> Var:
    return node.emit("tile", x=node.input(0), reps=node.ints(1) or node.input(1))


def _transpose(node: Node) -> Var:
    perm = node.ints(len(node.node.inputs), "perm")
    x = node.input(0)
    return node.emit("transpose", x=x, perm=perm or list(reversed(range(len(x.shape)))))


def _unsqueeze(node: Node) -> Var:
    return node.emit("expand_dims", x=node.input(0), axes=node.ints(1, "axes"))


def _squeeze(node: Node) -> Var:
    axes = node.ints(1, "axes")
    return node.emit("squeeze", x=node.input(0), axes=axes)


def _flatten(node: Node) -> Var:
    x, axis = node.input(0), node.integer("axis", 1)
    sizes = sizes_of(x)
    if axis == 1 and None not in sizes[1:]:
        return node.emit("reshape", x=x, shape=[-1, math.prod(size or 1 for size in sizes[1:])])
    if axis == 1 and sizes[0] is not None:
        return node.emit("reshape", x=x, shape=[sizes[0], -1])
    raise node.refusal("it flattens axes of unknown sizes")


def _concat(node: Node) -> Var:
    return node.emit("concat", values=node.inputs(), axis=node.integer("axis", 0))


def _split(node: Node) -> Sequence[Var]:
    x, axis, sizes = node.input(0), node.integer("axis", 0), node.ints(1, "split")
    count = {"split_sizes": sizes} if sizes else {"num_splits": len(node.node.outputs)}
    return tuple(node.emit("split", x=x, axis=axis, **count))


def _slice(node: Node) -> Var:
    x = node.input(0)
    rank = len(x.shape)
    starts, ends, steps = (node.ints(index) for index in (1, 2, 4))
    axes = node.ints(3) or list(range(int(node.input(1).shape[0])))
    if any(step < 0 for step in steps or ()):
        raise node.refusal("it steps backwards")
    cut = {(axis + rank) % rank: place for place, axis in enumerate(axes)}
    stride = [steps[cut[axis]] if steps and axis in cut else 1 for axis in range(rank)]
    whole = [starts is not None and starts[cut[axis]] == 0 if axis in cut else True for axis in range(rank)]
    to_end = [ends is not None and ends[cut[axis]] >= _LARGEST if axis in cut else True for axis in range(rank)]
    return node.emit(
        "slice_by_index",
        x=x,
        begin=_bounds(node, 1, starts, cut, whole),
        end=_bounds(node, 2, ends, cut, to_end),
        stride=stride,
        begin_mask=whole,
        end_mask=to_end,
    )


def _bounds(
    node: Node, index: int, known: Sequence[int] | None, cut: Mapping[int, int], masked: Sequence[bool]
) -> list[int] | Var:
    """Where each axis is cut, 0 where the mask says that it is not."""
    axes = range(len(masked))
    if known is not None:
        return [0 if masked[axis] else known[cut[axis]] for axis in axes]
    given = node.input(index)
    parts = [
        np.zeros(1, np.int32)
        if masked[axis]
        else node.emit("slice_by_index", x=given, begin=[cut[axis]], end=[cut[axis] + 1])
        for axis in axes
    ]
    return node.emit("concat", values=parts, axis=0)


def _gather(node: Node) -> Var:
    """Rows of a weight are looked up in its compressed form, which the heads that share it read too."""
    stored, axis = stored_of(node.value(0)), node.integer("axis", 0)
    indices = node.array(1)
    table = node.scope.weight(stored, "fp16") if stored is not None and stored.half else node.input(0)
    size = sizes_of(table)[axis]
    if indices is not None and (indices < 0).any():
        if size is None:
            raise node.refusal("it counts from the end of an axis of unknown size")
        indices = np.where(indices < 0, indices + size, indices)
    where = node.input(1) if indices is None else node.number(indices, "int32")
    found = node.emit("gather", x=table, indices=where, axis=axis, validate_indices=False)
    return found if found.dtype.__name__ == node.dtype else node.emit("cast", x=found, dtype=node.dtype)


def _gather_elements(node: Node) -> Var:
    return node.emit(
        "gather_along_axis",
        x=node.input(0),
        indices=node.input(1),
        axis=node.integer("axis", 0),
        validate_indices=False,
    )


def _range(node: Node) -> Var:
    start, end, step = node.inputs()
    return node.emit("range_1d", start=start, end=end, step=step)


def _constant_of_shape(node: Node) -> Var:
    value = node.node.attributes.get("value")
    number = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
    return node.emit("fill", shape=node.ints(0) or node.input(0), value=node.number(number.reshape(())[()], node.dtype))


def _pad(node: Node) -> Var:
    pads, mode = node.ints(1, "pads"), node.text("mode", "constant")
    if pads is None or mode != "constant" or node.value(3) is not None:
        raise node.refusal("only constant padding of all axes is known")
    half, value = len(pads) // 2, node.array(2)
    pairs = [size for axis in range(half) for size in (pads[axis], pads[axis + half])]
    fill = node.number(0 if value is None else value.reshape(())[()], node.dtype)
    return node.emit("pad", x=node.input(0), pad=pairs, mode="constant", constant_val=fill)


def _trilu(node: Node) -> Var:
    offset, upper = node.ints(1) or [0], node.integer("upper", 1)
    if offset != [0]:
        raise node.refusal("its diagonal is not the main one")
    lower, higher = (0, -1) if upper else (-1, 0)
    return node.emit("band_part", x=node.input(0), lower=lower, upper=higher)


SHAPES: Mapping[str, Translate] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
