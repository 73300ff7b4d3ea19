"""What the operators of domain `toolkit.cpu` mean: model-local functions for a runtime that lacks the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from runtimes._onnxruntime.kernels import DOMAIN, VERSION

__all__ = [
    "ACTIVATIONS",
    "LINEAR",
    "LINEAR_OFFSET",
    "PART",
    "QUICK_GELU_SLOPE",
    "ROUNDING",
    "Body",
    "activated",
    "attach",
    "linear_function",
]

LINEAR = "BlockLinear"
"""x float [.., K], B uint8 [N, K / block_size, block_size · bits / 8], scales float [N, K / block_size] -> [.., N]."""
LINEAR_OFFSET = "BlockLinearOffset"
"""The same with offsets float [K / block_size, N]: y += (sum of x over each block) · offset."""

ACTIVATIONS = ("Relu", "Gelu", "GeluTanh", "QuickGelu")
"""What encoders' Linears take in, as the names of their operators have it."""
QUICK_GELU_SLOPE = 1.702

PART = "toolkit.part"
"""The metadata of a body's node that names its part."""
ROUNDING = "rounding"
"""The part that turns x into codes, which every Linear of the operator reads."""

_ATTRIBUTES = ("K", "N", "bits", "block_size")
_INT8_ACTIVATIONS = 4


def attach(model: ir.Model, function: ir.Function) -> None:
    """Give the model a function of our domain, and the domains of what its body calls."""
    model.functions[function.identifier()] = function
    called = {domain: version for domain, version in function.opset_imports.items() if domain}
    model.opset_imports.update({DOMAIN: VERSION, **called})


def linear_function(op_type: str, opset: int, rank: int | None = None) -> ir.Function:
    """The body of `LINEAR` or `LINEAR_OFFSET`: `com.microsoft::MatMulNBits`, whose weights have the same form.

    `opset` is the model's, 15 or later. Where x has the same `rank` at every call, giving it saves two nodes a call.
    """
    names = ("x", "B", "scales", "offsets")[: 4 if op_type == LINEAR_OFFSET else 3]
    inputs = [ir.Value(name=name) for name in names]
    body = Body()
    attributes = [ir.RefAttr(name, name, ir.AttributeType.INT) for name in _ATTRIBUTES]
    level = ir.AttrInt64("accuracy_level", _INT8_ACTIVATIONS)
    y = body.op("MatMulNBits", inputs[:3], [*attributes, level], domain="com.microsoft")
    if op_type == LINEAR_OFFSET:
        y = body.op("Add", [y, body.op("MatMul", [_block_sums(body, inputs[0], rank), inputs[3]])])
    graph = ir.Graph(inputs, [y], nodes=body.nodes, opset_imports={"": opset, "com.microsoft": 1}, name=op_type)
    declared = [ir.Attr(name, ir.AttributeType.INT, None) for name in _ATTRIBUTES]
    return ir.Function(DOMAIN, op_type, graph=graph, attributes=declared)


def _block_sums(body: Body, x: ir.Value, rank: int | None) -> ir.Value:
    """[.., K / block_size], whatever stands before."""
    last = body.op("Constant", [], [ir.AttrInt64s("value_ints", [-1])])
    size = body.op("Constant", [], [ir.RefAttr("value_int", "block_size", ir.AttributeType.INT)])
    if rank is not None and rank > 1:
        # Zeros keep dimensions as they are, so that the whole target is constant.
        before = body.op("Constant", [], [ir.AttrInt64s("value_ints", [0] * (rank - 1))])
    else:
        before = body.op("Shape", [x], [ir.AttrInt64("end", -1)])
    target = body.op("Concat", [before, last, body.op("Reshape", [size, last])], [ir.AttrInt64("axis", 0)])
    return body.op("ReduceSum", [body.op("Reshape", [x, target]), last], [ir.AttrInt64("keepdims", 0)])


class Body:
    """The nodes of a function's body, in the order in which they were made.

    `part` is noted on them, where it is set: what they are of, for who looks into the operator.
    """

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.part = ""

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Any = (), domain: str = "") -> ir.Value:
        """Add a node with one output; answers that."""
        return self.ops(op_type, inputs, attributes, 1, domain)[0]

    def ops(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Any, outputs: int, domain: str = ""
    ) -> list[ir.Value]:
        """Add a node with so many outputs; answers them."""
        node = ir.Node(domain, op_type, inputs, attributes, num_outputs=outputs)
        node.metadata_props.update({PART: self.part} if self.part else {})
        for index, value in enumerate(node.outputs):
            value.name = f"{op_type}_{len(self.nodes)}" + (f"_{index}" if index else "")
        self.nodes.append(node)
        return list(node.outputs)


def activated(body: Body, y: ir.Value, activation: str) -> ir.Value:
    """One of `ACTIVATIONS` of y, or y."""
    if activation == "QuickGelu":
        slope = body.op("Constant", [], [ir.AttrFloat32("value_float", QUICK_GELU_SLOPE)])
        return body.op("Mul", [y, body.op("Sigmoid", [body.op("Mul", [y, slope])])])
    if activation in {"Gelu", "GeluTanh"}:
        form = "tanh" if activation == "GeluTanh" else "none"
        return body.op("Gelu", [y], [ir.AttrString("approximate", form)])
    return body.op(activation, [y]) if activation else y
