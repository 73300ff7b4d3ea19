"""float4e2m1 in float8e4m3fn, which holds each of its sixteen numbers and which the CPU provider has.

The numbers are 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives (ONNX, float4 types). Packed weights are read in their
own file as uint4, looked up in a table when ONNX Runtime opens the graph; quantizing is done by its arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["emulate_float4"]

_FOUR, _EIGHT, _FULL = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT
_LARGEST = 6.0
_TABLE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""By code: a sign, two bits of exponent, one of mantissa."""


def emulate_float4(model: ir.Model) -> None:
    """Rewrite the graph in place. Raises ValueError where a quantized tensor's rank is unknown."""
    writer = _Writer(model.graph)
    for value in list(model.graph.initializers.values()):
        if value.dtype == _FOUR:
            _decode(writer, value)
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype == _FOUR:
            _quantize(writer, node)


class _Writer:
    """Adds nodes and small constants to the graph; names are the first input's with a word behind."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._constants: dict[str, ir.Value] = {}

    def node(
        self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value], dtype: ir.DataType, **attributes: Any
    ) -> ir.Value:
        made = ir.node(op_type, list(inputs), attributes)
        output = made.outputs[0]
        output.name, output.dtype = f"{before.name}.{op_type}.{len(self.graph)}", dtype
        self.graph.insert_before(before, made)
        return output

    def constant(self, array: NDArray[Any] | np.generic) -> ir.Value:
        tensor = ir.tensor(np.asarray(array))
        name = f"float4.{tensor.dtype.name}.{np.asarray(array).tolist()}"
        if name not in self._constants:
            self._constants[name] = self.initializer(name, tensor)
        return self._constants[name]

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value


def _decode(writer: _Writer, weight: ir.Value) -> None:
    readers = list(weight.uses())
    if weight.const_value is None or not readers:
        return
    first = writer.graph[0]
    name = str(weight.name)
    del writer.graph.initializers[name]
    codes = writer.initializer(name, _as_codes(weight.const_value))
    index = writer.node(first, "Cast", [codes], ir.DataType.INT32, to=int(ir.DataType.INT32))
    numbers = writer.node(first, "Gather", [writer.constant(_TABLE), index], _FULL, axis=0)
    held = writer.node(first, "Cast", [numbers], _EIGHT, to=int(_EIGHT))
    for reader, position in readers:
        reader.replace_input_with(position, held)


def _as_codes(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same packed bytes, called uint4; two of them lie in a byte in both types, the first in the low half."""
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            ir.DataType.UINT4,
            shape=ir.Shape(tensor.shape),
            name=str(tensor.name),
            base_dir=tensor.base_dir,
        )
    packed = np.frombuffer(tensor.tobytes(), np.uint8)
    return ir.PackedTensor(packed, ir.DataType.UINT4, shape=ir.Shape(tensor.shape), name=tensor.name)


def _quantize(writer: _Writer, node: ir.Node) -> None:
    """q = saturate(round_half_to_even(x / scale)), each half to the number whose mantissa bit is 0."""
    steps = _divided(writer, node)
    size = writer.node(node, "Abs", [steps], _FULL)
    capped = writer.node(node, "Min", [size, writer.constant(np.float32(_LARGEST))], _FULL)
    step = _spacing(writer, node, capped)
    count = writer.node(node, "Round", [writer.node(node, "Div", [capped, step], _FULL)], _FULL)
    sign = writer.node(node, "Sign", [steps], _FULL)
    rounded = writer.node(node, "Mul", [writer.node(node, "Mul", [count, step], _FULL), sign], _FULL)
    held = writer.node(node, "Cast", [rounded], _EIGHT, to=int(_EIGHT))
    ir.convenience.replace_all_uses_with(node.outputs[0], held)
    writer.graph.remove(node, safe=True)


def _spacing(writer: _Writer, node: ir.Node, size: ir.Value) -> ir.Value:
    """The distance between neighbours: 0.5 below 2, 1 below 4, 2 from there."""
    wide = writer.node(node, "Less", [size, writer.constant(np.float32(4))], ir.DataType.BOOL)
    fine = writer.node(node, "Less", [size, writer.constant(np.float32(2))], ir.DataType.BOOL)
    one, two, half = (writer.constant(np.float32(number)) for number in (1, 2, 0.5))
    coarse = writer.node(node, "Where", [wide, one, two], _FULL)
    return writer.node(node, "Where", [fine, half, coarse], _FULL)


def _divided(writer: _Writer, node: ir.Node) -> ir.Value:
    """x / scale in float32, the scale of each block of the last axis beside the numbers of that block."""
    values, scale = (_full(writer, node, value) for value in node.inputs[:2])
    block = node.attributes.get_int("block_size", 0)
    if not block:
        return writer.node(node, "Div", [values, scale], _FULL)
    rank = len(values.shape) if values.shape is not None else 0
    if not rank or node.attributes.get_int("axis", 1) % rank != rank - 1:
        raise ValueError(f"{node.name} does not quantize blocks of the last axis of a tensor of known rank")
    split = writer.constant(np.array([0] * (rank - 1) + [-1, block], np.int64))
    wide = writer.node(node, "Unsqueeze", [scale, writer.constant(np.array([rank], np.int64))], _FULL)
    blocks = writer.node(node, "Reshape", [values, split], _FULL)
    divided = writer.node(node, "Div", [blocks, wide], _FULL)
    joined = writer.node(node, "Shape", [values], ir.DataType.INT64)
    return writer.node(node, "Reshape", [divided, joined], _FULL)


def _full(writer: _Writer, node: ir.Node, value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ValueError(f"{node.name} lacks an input")
    if value.dtype == _FULL:
        return value
    wide = writer.node(node, "Cast", [value], _FULL, to=int(_FULL))
    wide.shape = value.shape
    return wide
