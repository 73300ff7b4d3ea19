"""int8 queries, keys and values, for runtimes whose attention multiplies integers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from exporters.fused_attention.node import FusedAttention, attention_nodes, read
from quantize.arithmetic import symmetric_scale
from quantize.linears import add_initializer
from quantize.nodes import module_path, new_node, unused_name
from toolkit.types import Step

__all__ = ["Int8Attention"]

_HEAD_SIZES = (16, 32, 64)
"""Of TensorRT's int8 attention kernels."""


class Int8Attention:
    """The attention nodes of a graph that can run in int8, and why the others cannot.

    `values` are the tensors that need a range: queries, keys and values, each once.
    """

    def __init__(self, model: ir.Model) -> None:
        reasons = {node: _refusal(read(node)) for node in attention_nodes(model)}
        self._graph = model.graph
        self._nodes = [node for node, reason in reasons.items() if not reason]
        self._left = {node: reason for node, reason in reasons.items() if reason}
        self.values = [value for value in dict.fromkeys(v for node in self._nodes for v in node.inputs[:3]) if value]

    def quantize(self, bounds: Mapping[str, float]) -> list[Step]:
        """Put Q/DQ of one symmetric scale [] on each, `bounds` becoming 127; the node itself stays as it is."""
        made = {value: self._q_dq(value, bounds[str(value.name)]) for value in self.values}
        for node in self._nodes:
            for index, value in enumerate(node.inputs[:3]):
                if value is not None:
                    node.replace_input_with(index, made[value])
        left = "; ".join(f"{module_path(node)}: {reason}" for node, reason in self._left.items())
        steps = [Step("quantize", "int8 attention", len(self._nodes), "queries, keys and values, one scale a tensor")]
        return steps + ([Step("quantize", "attention left in float", len(self._left), left)] if left else [])

    def _q_dq(self, value: ir.Value, bound: float) -> ir.Value:
        name, reader = value.name or "", next(use.node for use in value.uses() if use.node in self._nodes)
        scale = add_initializer(self._graph, f"{name}_scale", ir.tensor(symmetric_scale(bound)))
        zero = add_initializer(self._graph, f"{name}_zero_point", ir.tensor(np.zeros((), np.int8)))
        first = new_node("QuantizeLinear", [value, scale, zero], unused_name(self._graph, f"{name}_quantized"), reader)
        first.outputs[0].dtype, first.outputs[0].shape = ir.DataType.INT8, value.shape
        output = unused_name(self._graph, f"{name}_dequantized")
        second = new_node("DequantizeLinear", [first.outputs[0], scale, zero], output, reader)
        second.outputs[0].dtype, second.outputs[0].shape = ir.DataType.FLOAT, value.shape
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], [first, second])
        else:
            self._graph.insert_after(producer, [first, second])
        return second.outputs[0]


def _refusal(attention: FusedAttention) -> str:
    sizes = {_dim(value, 3) for value in (attention.query, attention.key, attention.value)}
    heads = {_dim(value, 1) for value in (attention.query, attention.key)}
    if attention.cached:
        return "a cache is kept in float"
    if attention.softcap > 0:
        return "softcap"
    if len(sizes) > 1 or not sizes <= set(_HEAD_SIZES):
        return f"head size {', '.join(sorted(map(str, sizes)))} is none of {', '.join(map(str, _HEAD_SIZES))}"
    return "" if len(heads) == 1 and None not in heads else "queries share keys"


def _dim(value: ir.Value, axis: int) -> int | None:
    dim = value.shape[axis] if value.shape is not None and len(value.shape) == 4 else None
    return dim if isinstance(dim, int) else None
