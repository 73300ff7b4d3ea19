"""How large the tensors of a quantized graph can become at most: what a saturating `QuantizeLinear` lets one prove.

A quantized activation lies within 128 scales, 448 in fp8, whatever is fed; from there interval arithmetic gives a
bound for each product, sum and normalisation behind it. A bound that cannot be proven is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from exporters.fused_attention import is_attention, read

__all__ = ["bounds_of", "weight_of"]

_LEVELS = 128
_LARGEST = {ir.DataType.FLOAT8E4M3FN: 448, ir.DataType.FLOAT4E2M1: 6}
_SAME = frozenset(
    {
        "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Expand", "Slice", "Gather", "Split",
        "Cast", "Gelu", "Relu", "Abs", "Neg", "Dropout", "QuantizeLinear",
    }
)  # fmt: skip
_UP_TO_ONE = frozenset({"Tanh", "Sigmoid", "Softmax", "Erf", "Sin", "Cos"})
_SUMS = frozenset({"Add", "Sub"})
_NORMALISATIONS = frozenset({"LayerNormalization", "RMSNormalization"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})


def bounds_of(graph: ir.Graph) -> dict[str, float]:
    """The largest magnitude that each float value of the graph can have, by name; infinite where unknown."""
    bounds = _Bounds()
    for node in graph:
        bounds.follow(node)
    return {name: bound for value, bound in bounds.known.items() if (name := value.name)}


def weight_of(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a weight, in float32 where it is stored as integers or cast; None where it is computed."""
    tensor = value.const_value if value is not None else None
    if tensor is not None:
        return _numbers(tensor)
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Cast" and (stored := weight_of(node.inputs[0])) is not None:
        return stored.astype(np.float32)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    # A block's scale may be stored in 8 bits itself.
    stored, scale = _constant(node.inputs[0]), weight_of(node.inputs[1])
    if stored is None or scale is None:
        return None
    axis, block = node.attributes.get_int("axis", 1) % stored.ndim, node.attributes.get_int("block_size", 0)
    if block:
        blocks: np.ndarray = (stored.astype(np.float32) - _zero_point(node, block, axis)) * scale.repeat(block, axis)
        return blocks
    shape = [-1 if each == axis else 1 for each in range(stored.ndim)]
    exact: np.ndarray = stored.astype(np.float32) * (scale.reshape(shape) if scale.size > 1 else scale)
    return exact


def _zero_point(node: ir.Node, block: int, axis: int) -> np.ndarray:
    zero = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    spread: np.ndarray = np.zeros((), np.float32) if zero is None else zero.astype(np.float32).repeat(block, axis)
    return spread


class _Bounds:
    """Bounds so far; nodes are followed in graph order."""

    def __init__(self) -> None:
        self.known: dict[ir.Value, float] = {}

    def follow(self, node: ir.Node) -> None:
        if is_attention(node):
            self._follow_attention(node)
            return
        bound = self._bound(node)
        for output in node.outputs:
            self.known[output] = bound

    def _follow_attention(self, node: ir.Node) -> None:
        """The output is a mean of values. A past holds what the model itself answered before, so it has its bound."""
        attention = read(node)
        key, value = self.of(attention.key), self.of(attention.value)
        pairs = [(attention.past_key, key), (attention.past_value, value), (attention.output, value)]
        pairs += [(attention.present_key, key), (attention.present_value, value)]
        self.known.update((each, bound) for each, bound in pairs if each is not None)

    def of(self, value: ir.Value | None) -> float:
        if value is None:
            return 0.0
        if value not in self.known:
            array = _constant(value)
            self.known[value] = math.inf if array is None else float(np.abs(array).max(initial=0.0))
        return self.known[value]

    def _bound(self, node: ir.Node) -> float:
        if node.op_type in _SAME:
            return self.of(node.inputs[0])
        if node.op_type in _UP_TO_ONE:
            return 1.0
        if node.op_type in _SUMS:
            return sum(self.of(value) for value in node.inputs)
        rule = _RULES.get(node.op_type)
        return rule(self, node) if rule else math.inf

    def product_of(self, node: ir.Node) -> float:
        """bound(x) times the largest sum of magnitudes over a weight's inputs, and the bias, by a Gemm's factors."""
        weight = weight_of(node.inputs[1])
        if weight is None or weight.ndim < 2:
            return math.inf
        inputs = tuple(range(1, weight.ndim)) if node.op_type == "Conv" else (weight.ndim - 2,)
        if node.op_type == "Gemm" and node.attributes.get_int("transB", 0):
            inputs = (1,)
        alpha, beta = (abs(node.attributes.get_float(name, 1.0)) for name in ("alpha", "beta"))
        bias = _times(beta, self.of(node.inputs[2])) if len(node.inputs) > 2 else 0.0
        return _times(self.of(node.inputs[0]), alpha * float(np.abs(weight).sum(axis=inputs).max())) + bias

    def normalised(self, node: ir.Node) -> float:
        """A normalised vector of D numbers has none beyond sqrt(D)."""
        gain = _constant(node.inputs[1])
        if gain is None:
            return math.inf
        shift = self.of(node.inputs[2]) if len(node.inputs) > 2 else 0.0
        return math.sqrt(gain.size) * float(np.abs(gain).max()) + shift

    def rotated(self, node: ir.Node) -> float:
        """x1 · cos - x2 · sin and x2 · cos + x1 · sin, which may pass x; the rest of x as it is."""
        still = self.of(node.inputs[0])
        return max(still, _times(still, self.of(node.inputs[1]) + self.of(node.inputs[2])))

    def dequantized(self, node: ir.Node) -> float:
        stored = node.inputs[0]
        levels = _LARGEST.get(stored.dtype, _LEVELS) if stored is not None and stored.dtype is not None else _LEVELS
        return _times(levels, self.of(node.inputs[1]))

    def multiplied(self, node: ir.Node) -> float:
        return _times(self.of(node.inputs[0]), self.of(node.inputs[1]))

    def divided(self, node: ir.Node) -> float:
        divisor = _constant(node.inputs[1])
        least = 0.0 if divisor is None else float(np.abs(divisor).min(initial=math.inf))
        return self.of(node.inputs[0]) / least if least else math.inf

    def largest(self, node: ir.Node) -> float:
        return max(self.of(value) for value in node.inputs)

    def chosen(self, node: ir.Node) -> float:
        return max(self.of(node.inputs[1]), self.of(node.inputs[2]))


def _times(left: float, right: float) -> float:
    return 0.0 if 0.0 in (left, right) else left * right


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = value.const_value if value is not None and not value.is_graph_input() else None
    return None if tensor is None else _numbers(tensor)


def _numbers(tensor: ir.TensorProtocol) -> np.ndarray:
    array: np.ndarray = tensor.numpy()
    return array


_RULES: Mapping[str, Callable[[_Bounds, ir.Node], float]] = {
    **dict.fromkeys(_PRODUCTS, _Bounds.product_of),
    **dict.fromkeys(_NORMALISATIONS, _Bounds.normalised),
    "DequantizeLinear": _Bounds.dequantized,
    "RotaryEmbedding": _Bounds.rotated,
    "Mul": _Bounds.multiplied,
    "Div": _Bounds.divided,
    "Concat": _Bounds.largest,
    "Max": _Bounds.largest,
    "Where": _Bounds.chosen,
}
