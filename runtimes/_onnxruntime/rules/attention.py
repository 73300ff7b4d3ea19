"""`toolkit::FusedAttention` to the standard `Attention`, for which ONNX Runtime has fused kernels on CPU and CUDA.

On [B, S, H*D] inputs the Reshape and Transpose of the head split disappear with it. Measured against
`com.microsoft::MultiHeadAttention` and the 4-D form: up to 6% faster in all on AVX512, equal on AVX2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from exporters.fused_attention.node import FusedAttention, attention_nodes, read
from exporters.fused_attention.schema import DOMAIN
from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.rules.head_split import HEAD_SPLIT, before_head_split, int_dim, merged_heads
from runtimes._onnxruntime.rules.masks import MaskBuilder
from toolkit.errors import StageError
from toolkit.types import Step

__all__ = ["FIRST_OPSET", "lower_attention"]

FIRST_OPSET = 23
"""The first ONNX opset with `Attention`."""
_LAST_KERNEL_OPSET = 24


def lower_attention(model: ir.Model, emit: Emitter) -> list[Step]:
    """Replace every fused node and drop the function bodies; the counts of nodes in and out are equal.

    Raises StageError where a node is left over: it has no kernel and carries no function body.
    """
    nodes = attention_nodes(model)
    opset = model.opset_imports.get("", 0)
    steps = _to_standard(nodes, emit, opset) if opset >= FIRST_OPSET else _inline(model, nodes, opset)
    left = attention_nodes(model)
    if left:
        raise StageError(
            "lower",
            f"{len(left)} FusedAttention nodes could not be lowered, the first is '{left[0].name}'",
            hint=f"Export with --opset {FIRST_OPSET} or newer.",
        )
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[key]
    return steps


def _to_standard(nodes: list[ir.Node], emit: Emitter, opset: int) -> list[Step]:
    masks = MaskBuilder(emit)
    flat = sum(_lower(node, emit, masks) for node in nodes)
    kernel = "" if opset <= _LAST_KERNEL_OPSET else f"; no fused kernel at opset {opset}: decomposed, so slower"
    steps = [
        Step("lower", "FusedAttention -> Attention [B, S, H*D]", flat, f"head split removed{kernel}"),
        Step("lower", "FusedAttention -> Attention [B, H, S, D]", len(nodes) - flat, f"heads kept apart{kernel}"),
        Step("lower", "attention masks expanded", masks.expanded, "the kernel does not broadcast over queries"),
        Step("lower", "attention masks composed", masks.composed, "the kernel knows no window and no ALiBi"),
    ]
    return [step for step in steps if step.count]


def _inline(model: ir.Model, nodes: list[ir.Node], opset: int) -> list[Step]:
    if not nodes:
        return []
    InlinePass(criteria=lambda function: function.domain == DOMAIN)(model)
    reason = f"NOT FUSED: opset {opset} has no Attention operator (from {FIRST_OPSET}); right, but slower"
    return [Step("lower", "FusedAttention inlined as its function body", len(nodes), reason)]


def _lower(node: ir.Node, emit: Emitter, masks: MaskBuilder) -> bool:
    """Lower one node and answer whether the head split could be removed."""
    attention = read(node)
    mask = masks.build(node, attention)
    whole = _unsplit(attention)
    if whole:
        _lower_flat(node, emit, attention, whole, mask)
    else:
        inputs = [attention.query, attention.key, attention.value]
        fused = _emit_attention(node, emit, attention, inputs, mask, {})
        fused.shape, fused.type = attention.output.shape, attention.output.type
        emit.replace(attention.output, fused)
    owner = node.graph
    if owner is not None:
        owner.remove(node, safe=True)
    return bool(whole)


def _unsplit(attention: FusedAttention) -> list[ir.Value]:
    """Query, key and value as [B, S, H*D], or nothing where one was not split from that or its sizes are not known."""
    values = (attention.query, attention.key, attention.value)
    sources = [source for value in values if (source := before_head_split(value)) is not None]
    sizes = [int_dim(value, axis) for value, axis in ((values[0], 1), (values[1], 1), (values[2], 3))]
    return sources if len(sources) == 3 and None not in sizes else []


def _lower_flat(
    node: ir.Node, emit: Emitter, attention: FusedAttention, sources: list[ir.Value], mask: ir.Value | None
) -> None:
    heads, size = int_dim(attention.query, 1), int_dim(attention.value, 3)
    apart = {"q_num_heads": heads, "kv_num_heads": int_dim(attention.key, 1)}
    fused = _emit_attention(node, emit, attention, sources, mask, apart)
    fused.dtype = attention.output.dtype
    fused.shape = ir.Shape([*list(_shape(sources[0]))[:2], (heads or 0) * (size or 0)])
    for merged in merged_heads(attention.output, (heads or 0) * (size or 0)):
        emit.replace(merged, fused)
    if _is_used(attention.output):
        sizes = emit.constant(np.asarray([0, 0, heads, size], np.int64))
        split = emit.before(node, "Reshape", [fused, sizes]).outputs[0]
        turned = emit.before(node, "Transpose", [split], {"perm": list(HEAD_SPLIT)}, like=attention.output)
        emit.replace(attention.output, turned.outputs[0])


def _emit_attention(
    node: ir.Node,
    emit: Emitter,
    attention: FusedAttention,
    values: list[ir.Value],
    mask: ir.Value | None,
    apart: dict[str, int | None],
) -> ir.Value:
    """The node on `values`, with the cache that the attention owns; answers its first output."""
    inputs = _trimmed([*values, mask, attention.past_key, attention.past_value])
    made = emit.before(node, "Attention", inputs, _attributes(attention) | apart, outputs=3 if attention.cached else 1)
    presents = (attention.present_key, attention.present_value)
    for old, new in zip(presents, made.outputs[1:], strict=False):
        if old is not None:
            new.shape, new.type = old.shape, old.type
            emit.replace(old, new)
    return made.outputs[0]


def _attributes(attention: FusedAttention) -> dict[str, Any]:
    attributes: dict[str, Any] = {"scale": attention.scale}
    if attention.is_causal and not attention.cached:
        attributes["is_causal"] = 1
    if attention.softcap:
        attributes["softcap"] = attention.softcap
    return attributes


def _trimmed(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    return inputs


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _shape(value: ir.Value) -> ir.Shape:
    return value.shape if value.shape is not None else ir.Shape([None, None, None])
