"""Rotary embedding as the standard has it: caches with the batch of the tensor that they rotate."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["give_rotary_caches_a_batch"]


def give_rotary_caches_a_batch(model: ir.Model) -> int:
    """Expand every `RotaryEmbedding` cache to the batch of its input; answer how many were expanded.

    Without position ids the operator wants caches [batch, sequence, head size / 2] (ONNX RotaryEmbedding-23), but
    torch.onnx writes Transformers' own, which have batch 1; ONNX Runtime refuses them at any other batch.
    Layers share their caches, so each cache is expanded once; where the batch is right already, nothing changes.
    """
    expanded: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type != "RotaryEmbedding" or node.domain or len(node.inputs) > 3:
            continue
        rotated = node.inputs[0]
        for index in (1, 2):
            cache = node.inputs[index]
            if cache is not None and rotated is not None and _may_have_batch_one(cache):
                if cache not in expanded:
                    expanded[cache] = _expand(model.graph, node, rotated, cache)
                node.replace_input_with(index, expanded[cache])
    return len(expanded)


def _may_have_batch_one(cache: ir.Value) -> bool:
    """The exporter states no shape for what its own rewriting made."""
    return cache.shape is None or cache.shape[0] == 1


def _expand(graph: ir.Graph, node: ir.Node, rotated: ir.Value, cache: ir.Value) -> ir.Value:
    """`Expand(cache, [batch of the rotated tensor, 1, 1])`, right before the first node that needs it."""
    batch = _node("Shape", [rotated], f"{cache.name}_batch", start=0, end=1)
    ones = ir.Value(name=f"{cache.name}_ones", const_value=ir.tensor([1, 1], dtype=ir.DataType.INT64))
    ones.shape, ones.dtype = ir.Shape([2]), ir.DataType.INT64
    graph.register_initializer(ones)
    shape = _node("Concat", [batch.outputs[0], ones], f"{cache.name}_shape", axis=0)
    whole = _node("Expand", [cache, shape.outputs[0]], f"{cache.name}_expanded")
    whole.outputs[0].dtype = rotated.dtype
    graph.insert_before(node, [batch, shape, whole])
    return whole.outputs[0]


def _node(op_type: str, inputs: list[ir.Value | None], output: str, **attributes: int) -> ir.Node:
    node = ir.node(op_type, inputs=inputs, attributes=attributes, name=f"{output}_node")
    node.outputs[0].name = output
    return node
