"""uint8 around 128 as int8 around 0: TensorRT reads every uint8 as int8."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from runtimes._standard.nodes import Writer
from toolkit.types import Step

__all__ = ["sign_quantization"]

_MIDDLE = 128


def sign_quantization(model: ir.Model) -> list[Step]:
    """Rewrite uint8 tensors with zero point 128 that only pass from a Q or a constant to DQs.

    Exact: both q - 128 in uint8 and q in int8 are round(x / scale), saturated to -128 and 127.
    """
    writer = Writer(model)
    found = dict.fromkeys(_between(model.graph))
    for value in found:
        _sign(writer, value)
    if not found:
        return []
    return [Step("lower", "uint8 tensors rewritten as int8", len(found), "TensorRT reads uint8 as int8")]


def _between(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if value is None or value.is_graph_input() or value.is_graph_output():
            continue
        readers, maker = list(value.consumers()), value.producer()
        stored = ir.convenience.get_const_tensor(value) is not None
        made = maker is not None and maker.op_type == "QuantizeLinear" and _is_centred(maker)
        if (stored or made) and all(_is_centred(reader) and reader.graph is graph for reader in readers):
            yield value


def _is_centred(node: ir.Node) -> bool:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3:
        return False
    zero = ir.convenience.get_const_tensor(node.inputs[2])
    return zero is not None and zero.dtype == ir.DataType.UINT8 and bool((zero.numpy() == _MIDDLE).all())


def _sign(writer: Writer, value: ir.Value) -> None:
    readers, maker = list(value.consumers()), value.producer()
    stored = ir.convenience.get_const_tensor(value)
    if stored is not None:
        signed = writer.constant((stored.numpy().astype(np.int16) - _MIDDLE).astype(np.int8))
        ir.convenience.replace_all_uses_with(value, signed)
    elif maker is not None:
        value.dtype = ir.DataType.INT8
        maker.attributes.pop("output_dtype", None)
        readers.append(maker)
    for node in readers:
        zero = ir.convenience.get_const_tensor(node.inputs[2])
        shape = tuple(zero.shape.numpy()) if zero is not None else ()
        node.replace_input_with(2, writer.constant(np.zeros(shape, np.int8)))
