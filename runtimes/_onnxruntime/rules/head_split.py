"""Recognising how a model splits [B, S, H*D] into heads [B, H, S, D], and joins them again."""

from __future__ import annotations

import onnx_ir as ir

from runtimes._onnxruntime.emit import same_dim

__all__ = ["HEAD_SPLIT", "before_head_split", "int_dim", "merged_heads"]

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
