"""nvfp4 in standard ONNX (opset 23): two DequantizeLinear a weight; activations measured and rounded block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.float4 import BLOCK, E2M1_LARGEST, quantize, tensor_scale
from quantize.linears import Linear, add_initializer
from quantize.nodes import map_tensor, new_node, unused_name

__all__ = ["dequantized_weight", "quantized_activation"]

_FULL, _EIGHT, _FOUR = ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1
_LEAST = 2.0**-6
"""The smallest block scale, in tensor scales: E4M3's smallest normal number. None is 0, which nothing divides by."""


def dequantized_weight(graph: ir.Graph, linear: Linear) -> ir.Value:
    """Write the weight [K, N] in blocks along K, and the nodes that answer it in float32.

    Raises ValueError where a weight is NaN or Inf.
    """
    tensor, name = linear.weight.const_value, str(linear.weight.name)
    if tensor is None:
        raise ValueError(f"weight {name} has no data")
    made = map_tensor(tensor, quantize)
    writer = _Writer(graph, linear.node)
    scale = writer.op(
        "DequantizeLinear",
        [writer.held(f"{name}_scale", made.scale), writer.held(f"{name}_tensor_scale", made.tensor)],
        f"{name}_block_scale",
    )
    numbers = writer.packed(f"{name}_nvfp4", made.numbers)
    return writer.op("DequantizeLinear", [numbers, scale], f"{name}_dequantized", axis=0, block_size=BLOCK)


def quantized_activation(graph: ir.Graph, linear: Linear, absmax: float) -> ir.Value:
    """The activation [..., K] in float4 and back: its blocks' scales come from each input, the tensor's from `absmax`.

    The rank must be known. Raises ValueError where it is not.
    """
    source = linear.activation
    if source.shape is None or linear.weight.shape is None:
        raise ValueError(f"the rank of {source.name} is unknown")
    name, rank, scale = str(source.name), len(source.shape), tensor_scale(absmax)
    writer = _Writer(graph, linear.node)
    split = np.array([0] * (rank - 1) + [int(linear.weight.shape[0]) // BLOCK, BLOCK], np.int64)
    sizes = writer.op("Reshape", [writer.op("Abs", [source], f"{name}_size"), writer.held(f"{name}_split", split)])
    largest = writer.op("ReduceMax", [sizes, writer.held(f"{name}_axis", np.array([rank]))], keepdims=0)
    step = writer.op("Mul", [largest, writer.held(f"{name}_sixth", np.float32(1 / E2M1_LARGEST))])
    least = writer.held(f"{name}_least_scale", np.asarray(scale * np.float32(_LEAST)))
    bounded = writer.op("Max", [step, least])
    pair = [writer.held(f"{name}_tensor_scale", scale), writer.zero(f"{name}_zero_point")]
    stored = writer.op("QuantizeLinear", [bounded, *pair], dtype=_EIGHT)
    blocks = writer.op("DequantizeLinear", [stored, *pair], f"{name}_block_scale")
    along = {"axis": rank - 1, "block_size": BLOCK}
    rounded = writer.op(
        "QuantizeLinear", [source, blocks], f"{name}_quantized", dtype=_FOUR, output_dtype=int(_FOUR), **along
    )
    output = writer.op("DequantizeLinear", [rounded, blocks], f"{name}_dequantized", **along)
    rounded.shape = output.shape = source.shape
    return output


class _Writer:
    """Puts nodes before a Linear, with its metadata, and initializers into its graph."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self._graph, self._before = graph, before

    def op(
        self, op_type: str, inputs: list[ir.Value], name: str = "", *, dtype: ir.DataType = _FULL, **attributes: Any
    ) -> ir.Value:
        output = unused_name(self._graph, name or f"{inputs[0].name}_{op_type.lower()}")
        made = new_node(op_type, list(inputs), output, self._before, **attributes)
        made.outputs[0].dtype = dtype
        self._graph.insert_before(self._before, made)
        return made.outputs[0]

    def held(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        return add_initializer(self._graph, name, ir.tensor(np.asarray(array)))

    def zero(self, name: str) -> ir.Value:
        return add_initializer(self._graph, name, ir.tensor(np.zeros((), _EIGHT.numpy()), dtype=_EIGHT))

    def packed(self, name: str, numbers: NDArray[Any]) -> ir.Value:
        """Two float4 in a byte, the first in the low half, as ONNX packs them; K · N is even."""
        codes = numbers.view(np.uint8).reshape(-1)
        data = (codes[0::2] & 15 | codes[1::2] << 4).astype(np.uint8)
        return add_initializer(self._graph, name, ir.PackedTensor(data, _FOUR, shape=ir.Shape(numbers.shape)))
