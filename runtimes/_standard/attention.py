"""`toolkit::FusedAttention` into the standard `Attention` of opset 23, or into matrix products."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from exporters.fused_attention import FusedAttention, attention_nodes, read, remove_function
from runtimes._standard.masks import Mask, Masks
from runtimes._standard.nodes import Writer, origin, same_dim, static_dim, take_over
from runtimes._standard.static_cache import StaticCache
from toolkit.errors import UnsupportedError
from toolkit.types import Step

__all__ = ["lower_attention"]

_MIN_OPSET = 23
_TENSORRT_10 = "TensorRT 10 fuses these in half precision; its parser knows Attention from 10.14 on only"


def lower_attention(model: ir.Model, *, cache_length: int | None = None, decomposed: bool = False) -> list[Step]:
    """Replace every fused attention and drop the operator's function.

    TensorRT takes one additive mask, no mask beside `is_causal`, no softcap and one head size for queries, keys and
    values; what lies outside is written as matrix products, which TensorRT runs without its fused kernel.
    A cache is joined before the node: TensorRT refuses a past on it. With `cache_length` it is a buffer of so many
    positions, written in place.
    With `decomposed` all are products, as TensorRT 10 wants them, which fuses those itself in half precision.
    Raises UnsupportedError below opset 23, which has no `Attention`, and for queries that are not [B, H, S, D].
    """
    nodes = attention_nodes(model)
    if nodes and not decomposed and model.opset_imports.get("", 0) < _MIN_OPSET:
        raise UnsupportedError(
            f"the graph imports ONNX opset {model.opset_imports.get('', 0)}, which has no Attention",
            hint=f"Export with --opset {_MIN_OPSET}.",
        )
    writer = Writer(model)
    cache = StaticCache(model, cache_length) if cache_length is not None else None
    if cache is not None:
        cache.prepare(writer)
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph)
    rule = _Rule(writer, cache, decomposed=decomposed, quantized=quantized)
    for node in nodes:
        rule.replace(node)
    remove_function(model)
    return rule.steps()


class _Rule:
    """Rewrites attention nodes one by one and counts what became of them."""

    def __init__(self, writer: Writer, cache: StaticCache | None, *, decomposed: bool, quantized: bool) -> None:
        self.writer, self.cache, self.decomposed, self.quantized = writer, cache, decomposed, quantized
        self.masks = Masks(writer, cache.write_indices if cache is not None else None)
        self.done: Counter[tuple[str, str]] = Counter()

    def steps(self) -> list[Step]:
        return [Step("lower", what, count, reason) for (what, reason), count in self.done.items()]

    def replace(self, node: ir.Node) -> None:
        """Put the standard form in the place of `node`."""
        attention = self._joined(node, read(node))
        causal = attention.is_causal
        alone = causal and _causal_alone(attention)
        mask = self.masks.of(node, attention, causal=causal and not alone)
        refusal = "" if self.decomposed else _refusal(attention) or self._refusal_beside_int8(attention)
        if refusal or self.decomposed:
            result = _products(self.writer, node, attention, self._with_causality(node, attention, mask, alone))
        else:
            result = self._standard(node, attention, mask, alone)
        if mask.attended is not None:
            zero = self.writer.constant(np.asarray(0.0), attention.query.dtype)
            result = self.writer.node(node, "Where", [mask.attended, result, zero], attention.query.dtype)
        self._note(attention, refusal, mask)
        take_over(node, result)

    def _joined(self, node: ir.Node, attention: FusedAttention) -> FusedAttention:
        """The attention over past and new keys; `past_key` stays known, for where the queries stand."""
        if attention.past_key is None or attention.past_value is None:
            return attention
        if self.cache is not None:
            self.done["caches of fixed length, written in place", "--kv-cache static"] += 1
            return self.cache.join(self.writer, node, attention)
        pairs = (
            (attention.past_key, attention.key, attention.present_key),
            (attention.past_value, attention.value, attention.present_value),
        )
        key, value = (self._concat(node, *pair) for pair in pairs)
        self.done["caches joined before attention", "TensorRT takes no past on the node"] += 1
        return replace(attention, key=key, value=value)

    def _concat(self, node: ir.Node, past: ir.Value, new: ir.Value, present: ir.Value | None) -> ir.Value:
        joined = self.writer.node(node, "Concat", [past, new], new.dtype, {"axis": 2})
        if present is not None:
            name, joined.shape = present.name, present.shape
            ir.convenience.replace_all_uses_with(present, joined, replace_graph_outputs=True)
            present.name, joined.name = f"{name}.before", name
        return joined

    def _standard(self, node: ir.Node, attention: FusedAttention, mask: Mask, causal: bool) -> ir.Value:
        inputs = [attention.query, self._distinct_key(node, attention), attention.value]
        attributes: dict[str, float | int] = {"scale": attention.scale}
        if mask.bias is not None:
            inputs.append(mask.bias)
        if causal:
            attributes["is_causal"] = 1
        return self.writer.node(node, "Attention", inputs, attention.query.dtype, attributes)

    def _distinct_key(self, node: ir.Node, attention: FusedAttention) -> ir.Value:
        """The builder crashes where queries and keys are one tensor, also through views and products with 1.

        It keeps a maximum with the lowest number, which changes nothing.
        """
        if origin(attention.query) is not origin(attention.key):
            return attention.key
        self.done["keys told apart from queries", "TensorRT crashes where both are one tensor"] += 1
        dtype = attention.key.dtype or ir.DataType.FLOAT
        lowest = self.writer.constant(np.asarray([dtype.min], np.float64), dtype)
        return self.writer.node(node, "Max", [attention.key, lowest])

    def _refusal_beside_int8(self, attention: FusedAttention) -> str:
        """The builder crashes on an `Attention` in fp32 whose answer is quantized, and fuses none in fp32 anyway."""
        wide = self.quantized and attention.query.dtype == ir.DataType.FLOAT
        return "TensorRT crashes on an attention in fp32 beside int8" if wide else ""

    def _with_causality(self, node: ir.Node, attention: FusedAttention, mask: Mask, alone: bool) -> Mask:
        return self.masks.of(node, attention, causal=True) if alone else mask

    def _note(self, attention: FusedAttention, refusal: str, mask: Mask) -> None:
        if self.decomposed:
            self.done["attention as MatMul and Softmax", _TENSORRT_10] += 1
        elif refusal:
            self.done["attention as MatMul and Softmax, not fused", refusal] += 1
        else:
            self.done["attention as standard Attention", _masked(attention, mask)] += 1


def _refusal(attention: FusedAttention) -> str:
    """Why the standard `Attention` does not do in TensorRT, or nothing."""
    if attention.softcap > 0:
        return "TensorRT takes no softcap"
    sizes = [static_dim(value, 3) for value in (attention.query, attention.value)]
    if None in sizes:
        return "the head size is not fixed"
    return "" if sizes[0] == sizes[1] else "TensorRT takes one head size for keys and values"


def _causal_alone(attention: FusedAttention) -> bool:
    """Whether `is_causal` may say it: no mask beside it, and as many keys as queries for certain."""
    unbounded = attention.left_window_size < 0 and attention.right_window_size < 0
    plain = attention.attn_mask is None and attention.alibi_slopes is None
    return unbounded and plain and not attention.cached and same_dim(attention.query, attention.key, 2)


def _masked(attention: FusedAttention, mask: Mask) -> str:
    if mask.bias is None:
        return ""
    has = {
        "mask": attention.attn_mask is not None,
        "causality": attention.is_causal,
        "window": max(attention.left_window_size, attention.right_window_size) >= 0,
        "ALiBi": attention.alibi_slopes is not None,
    }
    return f"one additive mask for: {', '.join(name for name, present in has.items() if present)}"


def _products(writer: Writer, node: ir.Node, attention: FusedAttention, mask: Mask) -> ir.Value:
    """softmax(softcap · tanh(q · kᵀ · scale / softcap) + mask) · v."""
    dtype = attention.query.dtype

    def op(op_type: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        return writer.node(node, op_type, inputs, dtype, attributes)

    def number(value: float) -> ir.Value:
        return writer.constant(np.asarray(value), dtype)

    key, value = (_per_query_head(writer, node, attention, tensor) for tensor in (attention.key, attention.value))
    # The query is scaled, not the product: it is smaller, and half precision overflows later.
    query = op("Mul", attention.query, number(attention.scale))
    scores = op("MatMul", query, op("Transpose", key, perm=[0, 1, 3, 2]))
    if attention.softcap > 0:
        cap = number(attention.softcap)
        scores = op("Mul", op("Tanh", op("Div", scores, cap)), cap)
    if mask.bias is not None:
        scores = op("Add", scores, mask.bias)
    return op("MatMul", op("Softmax", scores, axis=-1), value)


def _per_query_head(writer: Writer, node: ir.Node, attention: FusedAttention, tensor: ir.Value) -> ir.Value:
    """[B, Hkv, S, D] as [B, Hq, S, D]: every head of keys and values repeated for the queries that share it."""
    queries, heads, size = (static_dim(value, axis) for value, axis in ((attention.query, 1), (tensor, 1), (tensor, 3)))
    if queries is None or heads is None or size is None:
        raise UnsupportedError(
            f"attention '{node.name}' has a number of heads or a head size that is not fixed",
            hint="Give the model fixed heads; only batch and sequence can be dynamic.",
        )
    if queries == heads:
        return tensor

    def ints(*numbers: int) -> ir.Value:
        return writer.constant(np.asarray(numbers, np.int64))

    apart = writer.node(node, "Unsqueeze", [tensor, ints(2)])
    repeated = writer.node(node, "Expand", [apart, ints(1, 1, queries // heads, 1, 1)])
    return writer.node(node, "Reshape", [repeated, ints(0, queries, -1, size)])
