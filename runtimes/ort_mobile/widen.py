"""Weights stay in half precision, arithmetic does not: `.ort` files hold the kernels of the machine that wrote them.

ONNX Runtime's converter runs on this machine's CPU provider, which has no half-precision kernels for most operators:
it would write each of them between two casts, and Softmax and Gelu in ten nodes each. So weights are widened where they
are read, and everything between is float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter
from toolkit.types import Step

__all__ = ["widen_arithmetic"]

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_SMALL = 4096
"""Numbers up to which a constant is stored in float32: biases and scales, which are not worth a node."""


def widen_arithmetic(model: ir.Model, emit: Emitter) -> list[Step]:
    """Compute in float32 what the graph computes in float16; inputs, outputs and other types stay as they are."""
    stored = [value for value in model.graph.initializers.values() if value.dtype == _HALF]
    if not stored:
        return []
    for node in list(model.graph):
        _compute_in_float(node)
    widened = sum(_widen(value, emit) for value in stored)
    for node in list(model.graph):
        _drop_cast(node, emit)
    return [Step("lower", "float16 weights widened where they are read", widened, "float32 arithmetic, half the file")]


def _compute_in_float(node: ir.Node) -> None:
    for value in node.outputs:
        if value.dtype == _HALF:
            value.type = ir.TensorType(_FLOAT)
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == _HALF:
        node.attributes["to"] = ir.AttrInt64("to", int(_FLOAT))


def _widen(weight: ir.Value, emit: Emitter) -> int:
    """Let all that read the weight read float32: a node that widens it, or the widened numbers where they are few."""
    tensor, uses = weight.const_value, list(weight.uses())
    if tensor is None or not uses:
        return 0
    if tensor.size <= _SMALL:
        emit.replace(weight, emit.initializer(ir.tensor(tensor.numpy().astype(np.float32)), f"{weight.name}.float32"))
        return 0
    others = []
    for use in uses:
        if use.node.op_type == "Gather" and use.idx == 0:
            _widen_rows(use.node, emit)
        else:
            others.append(use)
    if others:
        wide = emit.before(others[0].node, "Cast", [weight], {"to": int(_FLOAT)})
        wide.outputs[0].shape, wide.outputs[0].type = weight.shape, ir.TensorType(_FLOAT)
        for use in others:
            use.node.replace_input_with(use.idx, wide.outputs[0])
    return 1


def _widen_rows(gather: ir.Node, emit: Emitter) -> None:
    """Of an embedding table only the rows that were looked up are widened."""
    rows = gather.outputs[0]
    again = emit.before(gather, "Gather", gather.inputs, dict(gather.attributes))
    again.outputs[0].shape, again.outputs[0].type = rows.shape, ir.TensorType(_HALF)
    wide = emit.before(gather, "Cast", [again.outputs[0]], {"to": int(_FLOAT)}, like=rows)
    emit.replace(rows, wide.outputs[0])


def _drop_cast(node: ir.Node, emit: Emitter) -> None:
    source = node.inputs[0] if node.op_type == "Cast" else None
    if source is not None and source.dtype == _FLOAT and node.attributes.get_int("to", 0) == _FLOAT:
        emit.replace(node.outputs[0], source)
