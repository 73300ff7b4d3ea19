"""One form for every Linear: MatMul with a weight [K, N], then Add; and which of them are the last before an output."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from quantize.block_nodes import lazily
from quantize.linears import Linear, add_initializer
from quantize.nodes import constant, map_tensor, new_node, unused_name

__all__ = ["gemms_to_matmuls", "last_linears"]

_PASSING = frozenset(
    {"Add", "Cast", "Clip", "Div", "Flatten", "Gather", "Identity", "Mul", "Reshape", "Sigmoid", "Slice", "Softmax",
     "LogSoftmax", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"}
)  # fmt: skip
"""Operators between the last Linear and an output, as a bias, a softcap or a scale."""


def gemms_to_matmuls(graph: ir.Graph) -> int:
    """Rewrite every Gemm with a constant weight and no factors of its own; answers how many."""
    found = [node for node in graph if _is_plain_gemm(node)]
    for node in found:
        _rewrite(graph, node)
    return len(found)


def last_linears(graph: ir.Graph, linears: Iterable[Linear]) -> set[ir.Node]:
    """The Linears that make an output directly, as a language model's head or a classifier."""
    candidates = {linear.node for linear in linears}
    return {node for output in graph.outputs if (node := _source(output, candidates)) is not None}


def _source(value: ir.Value, candidates: set[ir.Node]) -> ir.Node | None:
    node = value.producer()
    while node is not None and node not in candidates:
        computed = [each for each in node.inputs if each is not None and constant(each) is None]
        if node.op_type not in _PASSING or len(computed) != 1:
            return None
        node = computed[0].producer()
    return node


def _is_plain_gemm(node: ir.Node) -> bool:
    if node.op_type != "Gemm" or node.domain not in {"", "ai.onnx"} or node.attributes.get_int("transA", 0):
        return False
    tensor = constant(node.inputs[1])
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and factors == [1.0, 1.0]


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    output, bias = node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    product = new_node("MatMul", [node.inputs[0], _weight(graph, node)], f"{output.name}_product", node)
    nodes = [product]
    if bias is not None:
        nodes.append(new_node("Add", [product.outputs[0], bias], f"{output.name}_sum", node))
    for made in nodes:
        made.outputs[0].name = unused_name(graph, str(made.outputs[0].name))
        made.outputs[0].dtype, made.outputs[0].shape = output.dtype, output.shape
    name = output.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [output], [nodes[-1].outputs[0]])
    nodes[-1].outputs[0].name = name


def _weight(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """The weight as [K, N]; its transpose takes the place and the name of a [N, K] that nothing else reads."""
    value = node.inputs[1]
    tensor = constant(value)
    if value is None or tensor is None or not node.attributes.get_int("transB", 0):
        return value
    columns, rows = (int(size) for size in tensor.shape)
    turned = lazily(lambda: map_tensor(tensor, lambda array: array.T.copy()), "float", (rows, columns))
    if len(value.uses()) > 1 or value.is_graph_output():
        return add_initializer(graph, f"{value.name}_transposed", turned)
    turned.name = value.name
    value.const_value, value.shape = turned, ir.Shape((rows, columns))
    return value
