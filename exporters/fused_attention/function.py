"""Giving `toolkit::FusedAttention` nodes their meaning: one model-local function a graph, in standard ONNX."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.fused_attention.body import Features, build_function, features_of
from exporters.fused_attention.node import NO_MASK, NO_SLOPES, FusedAttention, attention_nodes, read
from exporters.fused_attention.schema import DOMAIN, OP_TYPE, VERSION
from toolkit.errors import UnsupportedError

__all__ = ["attach_function", "remove_function"]

_KEY = (DOMAIN, OP_TYPE, "")
_ATTEND, _IGNORE = "toolkit.attend", "toolkit.ignore"
_MIN_OPSET = 18


def attach_function(model: ir.Model) -> None:
    """Add (or replace) the function that every `toolkit::FusedAttention` node of the graph calls.

    ONNX's reference evaluator ignores a function's overload, and several runtimes refuse an omitted input inside
    a body, so all nodes share one function and have the same inputs: a node without a mask, where others have one,
    gets the initializer `toolkit.no_mask`; without slopes `toolkit.no_slopes`. Boolean masks become float where
    another node's mask is float. A graph whose nodes are alike and have no cache gets neither.
    Raises UnsupportedError below opset 18, and where some nodes have a cache and others have none.
    """
    nodes = attention_nodes(model)
    if not nodes:
        remove_function(model)
        return
    opset = model.opset_imports.get("", 0)
    if opset < _MIN_OPSET:
        raise UnsupportedError(
            f"the graph imports ONNX opset {opset}, which cannot express {DOMAIN}::{OP_TYPE}",
            hint=f"Export with opset {_MIN_OPSET} or later.",
        )
    attentions = [read(node) for node in nodes]
    features = features_of(attentions)
    for node, attention in zip(nodes, attentions, strict=True):
        _give_inputs(model.graph, node, attention, features)
    _drop_unused(model.graph)
    model.functions[_KEY] = build_function(features, opset)
    model.opset_imports[DOMAIN] = VERSION


def remove_function(model: ir.Model) -> bool:
    """Drop the function, its constants and its opset once no node of the graph uses it; answer whether it is gone."""
    if attention_nodes(model):
        return False
    model.functions.pop(_KEY, None)
    _drop_unused(model.graph)
    if not any(key[0] == DOMAIN for key in model.functions):
        model.opset_imports.pop(DOMAIN, None)
    return True


def _give_inputs(graph: ir.Graph, node: ir.Node, attention: FusedAttention, features: Features) -> None:
    inputs = [attention.query, attention.key, attention.value]
    if features.inputs > 3:
        inputs.append(_mask(graph, node, attention, features))
    if features.inputs > 4:
        inputs.append(attention.alibi_slopes or _neutral(graph, NO_SLOPES, np.zeros(1), _float_type(attention)))
    if attention.past_key is not None and attention.past_value is not None:
        inputs += [attention.past_key, attention.past_value]
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def _mask(graph: ir.Graph, node: ir.Node, attention: FusedAttention, features: Features) -> ir.Value:
    mask = attention.attn_mask
    if mask is None:
        is_float = features.mask == "float"
        neutral = np.full((1, 1, 1, 1), not is_float)
        return _neutral(graph, NO_MASK, neutral, _float_type(attention) if is_float else ir.DataType.BOOL)
    if features.mask == "float" and mask.dtype == ir.DataType.BOOL:
        return _as_float(graph, node, mask, _float_type(attention))
    return mask


def _as_float(graph: ir.Graph, node: ir.Node, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    """0 where the mask is True, -inf where it is False; layers that share a mask share the result."""
    for use in mask.uses():
        other = use.node
        attend = other.inputs[1] if other.op_type == "Where" and other.graph is node.graph else None
        if attend is not None and attend.name == _ATTEND:
            return other.outputs[0]
    attend = _neutral(graph, _ATTEND, np.zeros(()), dtype)
    ignore = _neutral(graph, _IGNORE, np.full((), -np.inf), dtype)
    where = ir.Node("", "Where", [mask, attend, ignore], metadata_props=dict(node.metadata_props))
    where.outputs[0].dtype, where.outputs[0].shape = dtype, mask.shape
    node.prepend(where)
    return where.outputs[0]


def _neutral(graph: ir.Graph, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """The initializer of that name. Any float type serves: the body casts masks and slopes to the query's type."""
    value = graph.initializers.get(name)
    if value is None or (value.dtype == ir.DataType.BOOL) != (dtype == ir.DataType.BOOL):
        tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)
        graph.initializers[name] = value
    return value


def _float_type(attention: FusedAttention) -> ir.DataType:
    return attention.query.dtype or ir.DataType.FLOAT


def _drop_unused(graph: ir.Graph) -> None:
    for name in (NO_MASK, NO_SLOPES, _ATTEND, _IGNORE):
        value = graph.initializers.get(name)
        if value is not None and not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
