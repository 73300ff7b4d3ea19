"""Recognising how a model splits [B, S, H*D] into heads [B, H, S, D], and joins them again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter, same_dim

__all__ = ["HEAD_SPLIT", "before_head_split", "int_dim", "merged_heads", "put_back", "rows_of"]

HEAD_SPLIT = (0, 2, 1, 3)
"""The permutation between [B, S, H, D] and [B, H, S, D]."""


def before_head_split(value: ir.Value) -> ir.Value | None:
    """The [B, S, H*D] tensor that `value` [B, H, S, D] was split from by Reshape and Transpose, if it was."""
    transpose = value.producer()
    split = _input(transpose, 0) if _is_head_transpose(transpose) else None
    reshape = split.producer() if split is not None else None
    source = _input(reshape, 0) if reshape is not None and reshape.op_type == "Reshape" else None
    if split is None or source is None or source.shape is None or source.shape.rank() != 3:
        return None
    heads, size = int_dim(split, 2), int_dim(split, 3)
    if heads is None or size is None or int_dim(source, 2) != heads * size:
        return None
    return source if same_dim(source, 0, split, 0) and same_dim(source, 1, split, 1) else None


def merged_heads(value: ir.Value, width: int) -> list[ir.Value]:
    """The [B, S, H*Dv] tensors that Transpose and Reshape make of `value` [B, H, S, Dv]."""
    transposed = [use.node.outputs[0] for use in value.uses() if _is_head_transpose(use.node)]
    reshaped = [use.node for out in transposed for use in out.uses() if use.node.op_type == "Reshape"]
    return [node.outputs[0] for node in reshaped if _joins_heads(node, width)]


def rows_of(emit: Emitter, anchor: ir.Node, value: ir.Value) -> ir.Value:
    """`value` [B, H, S, D] as [B, S, H*D], by what it was split from where that can be seen, else by new nodes."""
    whole = before_head_split(value)
    if whole is not None:
        return whole
    heads, size = int_dim(value, 1) or 0, int_dim(value, 3) or 0
    by_token = _by_token(emit, anchor, value)
    return _reshaped(emit, anchor, by_token, [0, 0, heads * size], value.dtype, 3)


def put_back(emit: Emitter, anchor: ir.Node, old: ir.Value, rows: ir.Value) -> None:
    """Let `rows` [B, S, H*D] stand for `old` [B, H, S, D] wherever that is read, heads joined where the model does."""
    heads, size = int_dim(old, 1) or 0, int_dim(old, 3) or 0
    for merged in merged_heads(old, heads * size):
        _stand_in(emit, merged, rows)
    for turned in [use.node.outputs[0] for use in old.uses() if _is_head_transpose(use.node)]:
        if turned.uses():
            _stand_in(emit, turned, _reshaped(emit, anchor, rows, [0, 0, heads, size], old.dtype, 4))
        elif turned.graph is not None and not turned.is_graph_output():
            _remove(turned)
    if old.uses() or old.is_graph_output():
        split = _reshaped(emit, anchor, rows, [0, 0, heads, size], old.dtype, 4)
        apart = emit.before(anchor, "Transpose", [split], {"perm": list(HEAD_SPLIT)}, like=old).outputs[0]
        emit.replace(old, apart)


def _stand_in(emit: Emitter, old: ir.Value, new: ir.Value) -> None:
    emit.replace(old, new)
    _remove(old)


def _remove(value: ir.Value) -> None:
    node = value.producer()
    if node is not None and node.graph is not None:
        node.graph.remove(node, safe=True)


def _by_token(emit: Emitter, anchor: ir.Node, value: ir.Value) -> ir.Value:
    """`value` [B, H, S, D] as [B, S, H, D]; a norm over D can come before the Transpose that it was applied after."""
    node = value.producer()
    source = _input(node, 0)
    if node is not None and _is_head_transpose(node) and source is not None:
        return source
    above = source.producer() if source is not None else None
    if (
        node is not None
        and node.op_type == "RMSNormalization"
        and _is_head_transpose(above)
        and not value.is_graph_output()
    ):
        before = _input(above, 0)
        if before is not None and node.attributes.get_int("axis", -1) in {-1, 3}:
            moved = emit.before(node, node.op_type, [before, *node.inputs[1:]], dict(node.attributes), like=before)
            return moved.outputs[0]
    made = emit.before(anchor, "Transpose", [value], {"perm": list(HEAD_SPLIT)}).outputs[0]
    made.dtype = value.dtype
    return made


def _reshaped(
    emit: Emitter, anchor: ir.Node, value: ir.Value, sizes: list[int], dtype: ir.DataType | None, rank: int
) -> ir.Value:
    made = emit.before(anchor, "Reshape", [value, emit.constant(np.asarray(sizes, np.int64))]).outputs[0]
    first = list(value.shape)[:2] if value.shape is not None else [None, None]
    made.dtype, made.shape = dtype, ir.Shape([*first, *sizes[2:rank]])
    return made


def _joins_heads(reshape: ir.Node, width: int) -> bool:
    apart, joined = _input(reshape, 0), reshape.outputs[0]
    if apart is None or joined.shape is None or joined.shape.rank() != 3 or int_dim(joined, 2) != width:
        return False
    return same_dim(joined, 0, apart, 0) and same_dim(joined, 1, apart, 1)


def _is_head_transpose(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "Transpose" or "perm" not in node.attributes:
        return False
    return tuple(node.attributes["perm"].as_ints()) == HEAD_SPLIT


def _input(node: ir.Node | None, index: int) -> ir.Value | None:
    return node.inputs[index] if node is not None and len(node.inputs) > index else None


def int_dim(value: ir.Value, axis: int) -> int | None:
    """The size of a dimension where it is a number."""
    dim = value.shape[axis] if value.shape is not None else None
    return dim if isinstance(dim, int) else None
