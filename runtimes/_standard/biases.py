"""Biases stored as int32 are floats again: TensorRT dequantizes no int32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from runtimes._standard.nodes import Writer
from toolkit.types import Step

__all__ = ["fold_biases"]


def fold_biases(model: ir.Model) -> list[Step]:
    """Compute every DequantizeLinear of a constant int32 tensor: (x - zero point) · scale, in the scale's dtype."""
    writer, count = Writer(model), 0
    for node in model.graph:
        folded = _folded(writer, node)
        if folded is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], folded)
            count += 1
    if not count:
        return []
    return [Step("lower", "int32 biases folded into floats", count, "TensorRT dequantizes no int32")]


def _folded(writer: Writer, node: ir.Node) -> ir.Value | None:
    if node.op_type != "DequantizeLinear" or node.domain or node.outputs[0].is_graph_output():
        return None
    stored, scale, *rest = (ir.convenience.get_const_tensor(value) for value in node.inputs)
    if stored is None or scale is None or stored.dtype != ir.DataType.INT32 or None in rest:
        return None
    if node.attributes.get_int("block_size", 0):
        return None
    shape = [1] * len(stored.shape)
    if scale.size > 1:
        shape[node.attributes.get_int("axis", 1)] = -1
    zero = rest[0].numpy().reshape(shape) if rest and rest[0] is not None else 0
    exact: np.ndarray = (stored.numpy().astype(np.int64) - zero) * scale.numpy().astype(np.float64).reshape(shape)
    return writer.constant(exact, ir.DataType(node.attributes.get_int("output_dtype", 0) or scale.dtype))
