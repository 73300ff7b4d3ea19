"""Matrix products, convolutions, and what quantizes activations around them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runtimes.coreml.translate.mil import Var
from runtimes.coreml.translate.stored import Stored, stored_of
from runtimes.coreml.translate.values import Node, Translate

__all__ = ["PRODUCTS"]

_LINEAR_RANKS = (2, 3)


def _matmul(node: Node) -> Var:
    x, weight = node.input(0), stored_of(node.value(1))
    if weight is None or weight.rank != 2 or len(x.shape) not in _LINEAR_RANKS:
        return node.emit("matmul", x=x, y=node.input(1))
    return _linear(node, x, weight, _bias(node))


def _bias(node: Node) -> Var | None:
    """What the only reader of the product adds to each of its columns; that node then has nothing left to do."""
    uses = list(node.node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.node.outputs[0].is_graph_output():
        return None
    adding = Node(uses[0].node, node.scope)
    index = 1 - uses[0].idx
    array = adding.array(index)
    if array is None or array.ndim != 1 or array.size == 1:
        return None
    node.scope.joined.add(adding.node)
    return adding.input(index)


def _linear(node: Node, x: Var, weight: Stored, bias: Var | None = None) -> Var:
    """x · weight [K, N]: a Linear of Core ML holds it as [N, K]."""
    turned = node.scope.weight(weight.transposed((1, 0)), node.dtype)
    return node.emit("linear", x=x, weight=turned, bias=bias)


def _gemm(node: Node) -> Var:
    if node.decimal("alpha", 1.0) != 1.0 or (node.value(2) is not None and node.decimal("beta", 1.0) != 1.0):
        raise node.refusal("it scales what it adds")
    x, weight, bias = node.input(0), stored_of(node.value(1)), node.array(2)
    flips = [bool(node.integer(name, 0)) for name in ("transA", "transB")]
    if weight is not None and not flips[0] and (bias is None or bias.ndim == 1):
        held = weight.transposed((1, 0)) if flips[1] else weight
        return _linear(node, x, held, None if bias is None else node.input(2))
    product = node.emit("matmul", x=x, y=node.input(1), transpose_x=flips[0], transpose_y=flips[1])
    return product if node.value(2) is None else node.emit("add", x=product, y=node.input(2))


def _conv(node: Node) -> Var:
    """Weights are [out, in / groups, ...] in both; pads are all begins, then all ends in ONNX."""
    if node.text("auto_pad", "NOTSET") != "NOTSET":
        raise node.refusal("its padding is left to the runtime")
    axes = len(node.input(1).shape) - 2
    pads = node.ints(len(node.node.inputs), "pads") or [0] * 2 * axes
    spread = {name: node.ints(len(node.node.inputs), name) or [1] * axes for name in ("strides", "dilations")}
    return node.emit(
        "conv",
        x=node.input(0),
        weight=node.input(1),
        bias=node.optional(2),
        pad_type="custom",
        pad=[pads[axis + end] for axis in range(axes) for end in (0, axes)],
        groups=node.integer("group", 1),
        **spread,
    )


def _quantize(node: Node) -> Var:
    scale, zero = node.array(1), node.array(2)
    if scale is None or zero is None or node.integer("block_size", 0):
        raise node.refusal("its scale is computed, or one for a block")
    return node.emit(
        "quantize",
        input=node.input(0),
        scale=scale.astype(_of(node.input(0))),
        zero_point=zero,
        output_dtype=str(zero.dtype),
        axis=node.integer("axis", 1) if scale.ndim else None,
    )


def _dequantize(node: Node) -> Var:
    """Of activations: a weight is no node of the program's."""
    scale, zero = node.array(1), node.array(2)
    if scale is None or node.integer("block_size", 0):
        raise node.refusal("its scale is computed, or one for a block")
    return node.emit(
        "dequantize",
        input=node.input(0),
        scale=scale,
        zero_point=zero,
        axis=node.integer("axis", 1) if scale.ndim else None,
    )


def _of(x: Var) -> type[np.floating]:
    return np.float16 if x.dtype.__name__ == "fp16" else np.float32


PRODUCTS: Mapping[str, Translate] = {
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "QuantizeLinear": _quantize,
}
