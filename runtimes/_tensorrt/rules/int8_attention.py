"""Attention on int8 queries, keys and values, written so that TensorRT multiplies integers.

Around the `Attention` node Q/DQ is ignored. Its int8 kernel is found in the decomposed form: products between Q/DQ on
queries, keys, values and the softmax's output.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.fused_attention import FusedAttention, attention_nodes, read
from runtimes._standard.masks import Masks
from runtimes._standard.nodes import Writer, take_over
from toolkit.types import Step

__all__ = ["lower_int8_attention"]

_HALF = ir.DataType.FLOAT16
_SHARE = 1.0 / 127
"""The scale of a softmax's output, which is 0 to 1."""


def lower_int8_attention(model: ir.Model) -> list[Step]:
    """Decompose every fused attention in fp16 whose queries, keys and values are dequantized int8; leave the others."""
    nodes = [node for node in attention_nodes(model) if _is_int8(read(node))]
    writer = Writer(model)
    masks = Masks(writer)
    for node in nodes:
        _replace(writer, masks, node)
    if not nodes:
        return []
    return [Step("lower", "attention as int8 products", len(nodes), "TensorRT ignores Q/DQ around its Attention")]


def _is_int8(attention: FusedAttention) -> bool:
    return all(_dequantized(value) for value in (attention.query, attention.key, attention.value))


def _dequantized(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or value.dtype != _HALF or node.inputs[0] is None:
        return False
    if len(node.inputs) < 3 or node.inputs[1] is None or node.inputs[1].const_value is None:
        return False
    return node.inputs[0].dtype == ir.DataType.INT8 and not node.inputs[0].is_initializer()


def _replace(writer: Writer, masks: Masks, node: ir.Node) -> None:
    attention = read(node)

    def op(op_type: str, *inputs: ir.Value | None, **attributes: int | list[int]) -> ir.Value:
        return writer.node(node, op_type, inputs, _HALF, attributes)

    mask = masks.of(node, attention, causal=attention.is_causal)
    scores = op("MatMul", *_factors(writer, node, attention))
    if mask.bias is not None:
        scores = op("Add", scores, mask.bias)
    scale, zero = writer.constant(np.asarray(_SHARE), _HALF), writer.constant(np.asarray(0, np.int8))
    shares = writer.node(node, "QuantizeLinear", [op("Softmax", scores, axis=-1), scale, zero], ir.DataType.INT8)
    result = op("MatMul", op("DequantizeLinear", shares, scale, zero), attention.value)
    if mask.attended is not None:
        result = op("Where", mask.attended, result, writer.constant(np.asarray(0.0), _HALF))
    take_over(node, result)


def _factors(writer: Writer, node: ir.Node, attention: FusedAttention) -> tuple[ir.Value, ir.Value]:
    """The queries dequantized with `scale` in them, since a product of its own would stand between the integers.

    The keys are turned as integers: ONNX Runtime 1.32 fails where it moves a `DequantizeLinear` past a `Transpose`.
    """
    (queries, scale, zero), (keys, key_scale, key_zero) = (_parts(each) for each in (attention.query, attention.key))
    numbers = scale.const_value.numpy().astype(np.float64) if scale.const_value is not None else np.ones(())
    scaled = writer.constant(numbers * attention.scale, _HALF)
    turned = writer.node(node, "Transpose", [keys], ir.DataType.INT8, {"perm": [0, 1, 3, 2]})
    return (
        writer.node(node, "DequantizeLinear", [queries, scaled, zero], _HALF),
        writer.node(node, "DequantizeLinear", [turned, key_scale, key_zero], _HALF),
    )


def _parts(value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The integers, the scale and the zero point behind a dequantized tensor."""
    node = value.producer()
    integers, scale, zero = node.inputs[:3] if node is not None else (None, None, None)
    if integers is None or scale is None or zero is None:
        raise ValueError(f"{value.name} is not dequantized with a zero point")
    return integers, scale, zero
