"""Activations whose range is each token's own: uint8 with a scale and a zero point for every vector [K], as it comes.

In standard operators of opset 21: the least and the greatest of the last axis, and `QuantizeLinear` in blocks of all K.
The arithmetic is `quantize.arithmetic.affine_scale`'s, in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantize.linears import Linear, add_initializer
from quantize.nodes import new_node, unused_name
from toolkit.errors import UsageError

__all__ = ["require_opset", "token_q_dq"]

_OPSET = 21
"""The first in which `QuantizeLinear` takes a scale for each block."""
_STEPS = 255
_LEAST = float(np.finfo(np.float32).tiny)
"""The scale of a vector of zeros."""


def require_opset(model: ir.Model) -> None:
    """Raise UsageError where the graph is of an opset without scales for blocks."""
    opset = model.opset_imports.get("", 0)
    if opset < _OPSET:
        raise UsageError(
            f"ranges=per-token needs opset {_OPSET} or later, and this graph is of opset {opset}",
            hint=f"Export with --opset {_OPSET}, or leave ranges=per-token out.",
        )


def token_q_dq(graph: ir.Graph, linear: Linear) -> list[ir.Node]:
    """The nodes that measure, round and restore what a Linear reads, [.., K]; scales and zero points are [.., 1]."""
    return _Nodes(graph, linear).made()


class _Nodes:
    def __init__(self, graph: ir.Graph, linear: Linear) -> None:
        self._graph, self._linear = graph, linear
        self._nodes: list[ir.Node] = []

    def made(self) -> list[ir.Node]:
        x = self._linear.activation
        axis, zero = self._constant("axis", np.array([-1], np.int64)), self._constant("zero", np.float32(0))
        low = self._op("Min", "low", self._op("ReduceMin", "least", x, axis, keepdims=1), zero)
        high = self._op("Max", "high", self._op("ReduceMax", "greatest", x, axis, keepdims=1), zero)
        width = self._op(
            "Div", "width", self._op("Sub", "range", high, low), self._constant("steps", np.float32(_STEPS))
        )
        scale = self._op("Max", "scale", width, self._constant("least_scale", np.float32(_LEAST)))
        zeros = self._op("Round", "zeros", self._op("Div", "below", self._op("Neg", "depth", low), scale))
        zero_point = self._op("Cast", "zero_point", zeros, dtype=ir.DataType.UINT8, to=ir.DataType.UINT8.value)
        blocks = {"axis": -1, "block_size": self._linear.inputs}
        codes = self._op(
            "QuantizeLinear", "quantized", x, scale, zero_point, dtype=ir.DataType.UINT8, wide=True, **blocks
        )
        self._op("DequantizeLinear", "dequantized", codes, scale, zero_point, wide=True, **blocks)
        return self._nodes

    def _op(
        self,
        op_type: str,
        what: str,
        *inputs: ir.Value,
        dtype: ir.DataType = ir.DataType.FLOAT,
        wide: bool = False,
        **attributes: int,
    ) -> ir.Value:
        name = unused_name(self._graph, f"{self._linear.activation.name}_{what}")
        node = new_node(op_type, list(inputs), name, self._linear.node, **attributes)
        value = node.outputs[0]
        value.dtype, shape = dtype, self._linear.activation.shape
        if shape is not None:
            value.shape = shape if wide else ir.Shape([*shape[:-1], 1])
        self._nodes.append(node)
        return value

    def _constant(self, what: str, number: np.generic | np.ndarray) -> ir.Value:
        return add_initializer(self._graph, f"{self._linear.activation.name}_{what}", ir.tensor(np.asarray(number)))
