"""Operators that move, cut and join tensors, and arithmetic on their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from runtimes.coreml.translate.mil import Var
from runtimes.coreml.translate.stored import stored_of
from runtimes.coreml.translate.values import Node, Translate

__all__ = ["SHAPES", "size_along", "sizes_of"]

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


def _size(node: Node) -> Var:
    """How many numbers the input holds, a scalar."""
    x = node.input(0)
    fixed = [size for size in sizes_of(x) if size is not None]
    if len(fixed) == len(x.shape):
        return node.emit("identity", x=np.int32(math.prod(fixed)))
    return node.emit("reduce_prod", x=node.emit("shape", x=x), axes=[0], keep_dims=False)


def _within(axis: int, rank: int) -> int:
    return min(max(axis + rank if axis < 0 else axis, 0), rank)


def _reshape(node: Node) -> Var:
    """With at most one size unknown that one is -1; the others are those of named dimensions or of the input's axes."""
    x, wanted = node.input(0), node.ints(1)
    if wanted is not None and not node.integer("allowzero", 0):
        # ONNX counts the axes that 0 copies from the left, MIL from the right.
        parts = [size_along(node, 0, axis) if size == 0 else size for axis, size in enumerate(wanted)]
    else:
        parts = [_declared(node, axis) for axis in range(int(node.input(1).shape[0]))]
    if sum(not _is_fixed(part) for part in parts) <= 1:
        return node.emit("reshape", x=x, shape=[part if isinstance(part, int) else -1 for part in parts])
    if sum(part is None or part == -1 for part in parts if not isinstance(part, Var)) <= 1:
        return node.emit("reshape", x=x, shape=_joined(node, [-1 if part is None else part for part in parts]))
    return node.emit("reshape", x=x, shape=node.input(1))


def _is_fixed(part: int | Var | None) -> bool:
    return isinstance(part, int) and part != -1


def size_along(node: Node, index: int, axis: int) -> int | Var:
    """The size that an input has along an axis: a number, or int32 [1]."""
    x = node.input(index)
    size, declared = sizes_of(x)[axis], node.given(index).shape
    if size is not None:
        return size
    named = None if declared is None else node.scope.size(str(declared[axis]))
    if named is not None:
        return named
    return node.emit("slice_by_index", x=node.emit("shape", x=x), begin=[axis], end=[axis + 1])


def _declared(node: Node, axis: int) -> int | Var | None:
    """The size that the graph declares for an axis of the result; None where it is the name of nothing that is fed."""
    made, read = node.node.outputs[0].shape, node.given(0).shape
    if made is None:
        known = node.input(1).val
        return None if known is None else int(known[axis])
    size = made[axis]
    if isinstance(size, int):
        return size
    named = node.scope.size(str(size))
    if named is not None or read is None or size.value is None:
        return named
    same = [place for place, dim in enumerate(read) if dim == size]
    return size_along(node, 0, same[0]) if same else None


def _joined(node: Node, parts: Sequence[int | Var]) -> Var:
    """Sizes, some of them known, as one tensor."""
    values = [part if isinstance(part, Var) else np.array([part], np.int32) for part in parts]
    return node.emit("concat", values=values, axis=0)


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
    named = node.scope.size(str(known))
    return named if named is not None else node.emit("slice_by_index", x=shape, begin=[axis], end=[axis + 1])


def _tiled(node: Node, x: Var, repeats: Sequence[int | Var]) -> Var:
    if all(count == 1 for count in repeats if isinstance(count, int)) and not any(
        isinstance(count, Var) for count in repeats
    ):
        return x
    fixed = all(isinstance(count, int) for count in repeats)
    return node.emit("tile", x=x, reps=list(repeats) if fixed else _joined(node, repeats))


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
    """In ONNX the indices may be shorter along the other axes; MIL wants both equally long."""
    x, indices = node.input(0), node.input(1)
    axis = node.integer("axis", 0) % len(x.shape)
    ends = sizes_of(indices)
    shorter = [
        place != axis and None not in (size, ends[place]) and size != ends[place]
        for place, size in enumerate(sizes_of(x))
    ]
    if any(shorter):
        end = [int(size or 0) if cut else 0 for size, cut in zip(ends, shorter, strict=True)]
        whole = [not cut for cut in shorter]
        x = node.emit("slice_by_index", x=x, begin=[0] * len(end), end=end, end_mask=whole)
    return node.emit("gather_along_axis", x=x, indices=indices, axis=axis, validate_indices=False)


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
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
