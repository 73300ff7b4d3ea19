"""`Attention` without a cache to the toolkit's own operators, which fall back to it through their functions.

They have no tensor of Sq x Skv and read masks by strides, so that one of [B, 1, 1, S] stays that.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.attention_function import (
    ATTENTION,
    ATTENTION_MASKED,
    ATTENTION_PACKED,
    ATTENTION_PACKED_MASKED,
    attention_function,
)
from runtimes._onnxruntime.kernels.function import attach
from runtimes._onnxruntime.saturation import quantizes_activations
from toolkit.types import Step

__all__ = ["use_own_attention"]

_TENSORS, _MASK = 3, 3
_MIN_RANK, _MAX_RANK = 2, 4
_MASK_TYPES = frozenset({ir.DataType.BOOL, ir.DataType.FLOAT, None})
"""None is what the lowering itself composed, which is one of the others."""
_KNOWN = frozenset({"q_num_heads", "kv_num_heads", "is_causal", "scale"})


def use_own_attention(model: ir.Model, emit: Emitter) -> list[Step]:
    """Replace every float32 `Attention` without cache and softcap, and attach the functions that are then called.

    Runs after attention was lowered and before integer products are. Where activations are quantized, products of
    bfloat16 are allowed. Query, key and value that one Split cut from one tensor are read from that.
    """
    found = [node for node in model.graph if _fits(node)]
    whole = sum(_expanded(node) is not None for node in found)
    rounded = quantizes_activations({(node.domain, node.op_type) for node in model.graph})
    counts = Counter(_replace(emit, node, rounded) for node in found)
    for op_type in counts:
        attach(model, attention_function(op_type, model.opset_imports.get("", 0)))
    packed = counts[ATTENTION_PACKED] + counts[ATTENTION_PACKED_MASKED]
    steps = [
        Step("lower", f"Attention -> {DOMAIN}::{ATTENTION}", len(found), "own kernel, memory linear in the length"),
        Step("lower", "attention may round to bfloat16", len(found) if rounded else 0, "activations are int8 anyway"),
        Step("lower", "attention reads packed query, key and value", packed, "no Split before the own kernel"),
        Step("lower", "attention masks not expanded after all", whole, "the own kernel broadcasts over queries"),
    ]
    return [step for step in steps if step.count]


def _fits(node: ir.Node) -> bool:
    if node.domain or node.op_type != "Attention" or len(node.outputs) > 1:
        return False
    inputs = [*node.inputs, None][: _MASK + 1]
    rows, mask = inputs[:_TENSORS], inputs[_MASK]
    past = any(value is not None for value in node.inputs[_MASK + 1 :])
    if past or any(value is None or value.dtype != ir.DataType.FLOAT for value in rows):
        return False
    if mask is not None and _dtype(node, mask) not in _MASK_TYPES:
        return False
    neutral = not node.attributes.get_float("softcap", 0.0) and "scale" in node.attributes
    return neutral and set(node.attributes) <= _KNOWN | {"softcap"}


def _replace(emit: Emitter, node: ir.Node, rounded: bool) -> str:
    """The name of the operator that took the node's place."""
    packed = _packed(node)
    rows = [packed] if packed is not None else list(node.inputs[:_TENSORS])
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    op_type = ATTENTION if packed is None else ATTENTION_PACKED
    if mask is not None:
        op_type = ATTENTION_MASKED if packed is None else ATTENTION_PACKED_MASKED
        rows += _expanded(node) or [mask, emit.constant(np.ones(2, np.int64))]
    attributes = {
        **{name: node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads", "is_causal")},
        "scale": node.attributes.get_float("scale"),
        "bfloat16": int(rounded),
    }
    old = node.outputs[0]
    made = emit.before(node, op_type, rows, attributes, domain=DOMAIN, like=old)
    emit.replace(old, made.outputs[0])
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return op_type


def _expanded(node: ir.Node) -> list[ir.Value] | None:
    """The mask as it was before it was expanded over the queries, and what it was expanded to."""
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    expand = mask.producer() if mask is not None else None
    if expand is None or expand.domain or expand.op_type != "Expand":
        return None
    source, lengths = expand.inputs
    if source is None or lengths is None or source.shape is None or not _MIN_RANK <= source.shape.rank() <= _MAX_RANK:
        return None
    return [source, lengths]


def _packed(node: ir.Node) -> ir.Value | None:
    """What one Split cut into this query, key and value, in this order and of one width."""
    values = node.inputs[:_TENSORS]
    split = values[0].producer() if values[0] is not None else None
    heads = {node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads")}
    if split is None or split.domain or split.op_type != "Split" or len(heads) > 1 or heads == {0}:
        return None
    source = split.inputs[0]
    if tuple(values) != split.outputs or source is None or source.shape is None or source.shape.rank() != _TENSORS:
        return None
    widths = {value.shape[2] if value is not None and value.shape is not None else None for value in values}
    last = split.attributes.get_int("axis", 0) in {-1, 2}
    return source if last and len(widths) == 1 and isinstance(widths.pop(), int) else None


def _dtype(node: ir.Node, mask: ir.Value) -> ir.DataType | None:
    """The mask's type; a mask that was expanded has that of what it was made from."""
    source = _expanded(node)
    return source[0].dtype if source is not None else mask.dtype
