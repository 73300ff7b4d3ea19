"""The standard `Attention` of opset 23 and later: what TensorRT takes of it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from runtimes._standard.nodes import origin, same_dim, static_dim
from runtimes._tensorrt.preflight.finding import Finding

__all__ = ["attention"]

_ONE_MASK = "add causality to the mask"
_PRODUCTS = "write it as MatMul and Softmax"


def attention(node: ir.Node) -> Iterator[Finding]:
    """What is wrong with an `Attention` whose queries are [B, H, S, D] or [B, S, H·D]."""
    if node.domain or node.op_type != "Attention":
        return
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    query, key, value, mask = inputs[:4]
    if query is None or key is None or value is None:
        yield Finding("a query, a key or a value is missing", "give all three")
        return
    yield from _extras(node, inputs[4:])
    yield from _sizes(node, query, key, value)
    if mask is not None:
        yield from _mask(node, query, key, mask)


def _extras(node: ir.Node, rest: list[ir.Value | None]) -> Iterator[Finding]:
    if any(value is not None for value in rest[:2]) or any(output.name for output in node.outputs[1:]):
        yield Finding("past and present keys on the node are refused", "join past and new keys with Concat before it")
    if rest[2] is not None:
        yield Finding("nonpad_kv_seqlen is ignored without a word", "give a mask")
    if node.attributes.get_float("softcap", 0.0):
        yield Finding("softcap is refused", _PRODUCTS)
    if "softmax_precision" in node.attributes:
        yield Finding("softmax_precision is refused", "drop the attribute: scores are accumulated in fp32")


def _sizes(node: ir.Node, query: ir.Value, key: ir.Value, value: ir.Value) -> Iterator[Finding]:
    heads, shared = (node.attributes.get_int(name, 1) for name in ("q_num_heads", "kv_num_heads"))
    sizes = _head_size(query, heads), _head_size(value, shared)
    if None not in sizes and sizes[0] != sizes[1]:
        yield Finding(f"head size {sizes[1]} of the values differs from {sizes[0]} of the queries", _PRODUCTS)
    if origin(query) is origin(key):
        yield Finding("queries and keys are one tensor, which crashes the builder", "tell them apart with a Max")
    if node.attributes.get_int("is_causal", 0) and not same_dim(query, key, _sequence(query)):
        yield Finding("is_causal with other than as many keys as queries is read as upper-left aligned", "give a mask")


def _head_size(tensor: ir.Value, heads: int) -> int | None:
    width = static_dim(tensor, len(tensor.shape) - 1) if tensor.shape is not None else None
    return width // heads if width is not None else None


def _sequence(query: ir.Value) -> int:
    return 1 if query.shape is not None and len(query.shape) == 3 else 2


def _mask(node: ir.Node, query: ir.Value, key: ir.Value, mask: ir.Value) -> Iterator[Finding]:
    if node.attributes.get_int("is_causal", 0):
        yield Finding("a mask together with is_causal is refused", _ONE_MASK)
    if mask.dtype not in (None, ir.DataType.BOOL) and query.dtype is not None and mask.dtype != query.dtype:
        name = mask.dtype.name if mask.dtype else "untyped"
        problem = f"the mask is {name}; it must be bool or {query.dtype.name}, as the queries"
        yield Finding(problem, f"cast the mask to {query.dtype.name}")
    width = static_dim(mask, len(mask.shape) - 1) if mask.shape is not None else None
    keys = static_dim(key, _sequence(key))
    if width is not None and keys is not None and width not in (1, keys):
        yield Finding(f"the mask covers {width} of {keys} keys", "pad the mask")
