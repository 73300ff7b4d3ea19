"""Recognising an fp32 Linear: a product with a constant matrix and the Add of its bias."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from runtimes._onnxruntime.emit import same_dim

__all__ = ["FloatLinear", "float_linear_at"]


@dataclass(frozen=True, slots=True, eq=False)
class FloatLinear:
    """`x` [..., K] times `weight` [K, N], plus `bias` [N] where there is one; `last` makes the result."""

    product: ir.Node
    last: ir.Node
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None


def float_linear_at(node: ir.Node) -> FloatLinear | None:
    """The Linear whose product `node` is, if it is one of constant fp32 weights."""
    if node.op_type != "MatMul" or node.domain:
        return None
    x, weight = node.inputs
    if x is None or weight is None or not _is_constant(weight, 2):
        return None
    uses = list(node.outputs[0].uses())
    add = uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None
    if add is None or add.op_type != "Add" or add.domain:
        return FloatLinear(node, node, x, weight, None)
    bias = add.inputs[1 - uses[0].idx]
    if bias is None or not _is_constant(bias, 1) or not same_dim(bias, 0, weight, 1):
        return FloatLinear(node, node, x, weight, None)
    return FloatLinear(node, add, x, weight, bias)


def _is_constant(value: ir.Value, rank: int) -> bool:
    shaped = value.shape is not None and value.shape.rank() == rank
    return value.is_initializer() and shaped and value.dtype == ir.DataType.FLOAT
