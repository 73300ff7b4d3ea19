"""What the attention operators of domain `toolkit.cpu` mean, as model-local functions on the standard `Attention`."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.function import Body

__all__ = [
    "ATTENTION",
    "ATTENTION_MASKED",
    "ATTENTION_PACKED",
    "ATTENTION_PACKED_MASKED",
    "OPERATORS",
    "attention_function",
]

ATTENTION = "Attention"
"""query [B, Sq, Hq · D], key [B, Skv, Hkv · D], value [B, Skv, Hkv · Dv] -> [B, Sq, Hq · Dv], all float32.

With both numbers of heads 0 the heads stand apart, [B, H, S, D], in all four.
"""
ATTENTION_MASKED = "AttentionMasked"
"""The same with a mask, bool or float32, that broadcasts to [B, Hq, Sq, Skv], and `lengths`, int64 [2].

The function expands the mask to `lengths`, as the standard operator's kernel needs it; layers that share both share the
expanded mask as well. Ones leave it as it is.
"""
ATTENTION_PACKED = "AttentionPacked"
"""qkv [B, S, 3 · H · D], query, key and value after each other -> [B, S, H · D]."""
ATTENTION_PACKED_MASKED = "AttentionPackedMasked"
"""qkv with a mask and `lengths`."""
OPERATORS = {
    ATTENTION: ("query", "key", "value"),
    ATTENTION_MASKED: ("query", "key", "value", "mask", "lengths"),
    ATTENTION_PACKED: ("qkv",),
    ATTENTION_PACKED_MASKED: ("qkv", "mask", "lengths"),
}
"""The operators and the names of their inputs."""

_INTEGERS = ("q_num_heads", "kv_num_heads", "is_causal")
_PASSED = {**dict.fromkeys(_INTEGERS, ir.AttributeType.INT), "scale": ir.AttributeType.FLOAT}
_OF_KERNEL = {"bfloat16": ir.AttributeType.INT}
"""What only the kernel heeds: 1 allows it products of bfloat16."""


def attention_function(op_type: str, opset: int) -> ir.Function:
    """The body of one of `OPERATORS`. `opset` is the model's, 23 or later: the first with `Attention`."""
    inputs = {name: ir.Value(name=name) for name in OPERATORS[op_type]}
    body = Body()
    rows: list[ir.Value] = [inputs[name] for name in ("query", "key", "value") if name in inputs]
    if not rows:
        attributes: list[Any] = [ir.AttrInt64("axis", -1), ir.AttrInt64("num_outputs", 3)]
        rows = body.ops("Split", [inputs["qkv"]], attributes, 3)
    if "mask" in inputs:
        rows.append(body.op("Expand", [inputs["mask"], inputs["lengths"]]))
    y = body.op("Attention", rows, [ir.RefAttr(name, name, kind) for name, kind in _PASSED.items()])
    graph = ir.Graph(list(inputs.values()), [y], nodes=body.nodes, opset_imports={"": opset}, name=op_type)
    declared = [ir.Attr(name, kind, None) for name, kind in (_PASSED | _OF_KERNEL).items()]
    return ir.Function(DOMAIN, op_type, graph=graph, attributes=declared)
