"""`toolkit::FusedAttention` into the standard `Attention` that one `scaled_dot_product_attention` of Core ML is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.fused_attention import FusedAttention, attention_nodes, read, remove_function
from runtimes._standard.masks import Mask, Masks
from runtimes._standard.nodes import Writer, static_dim, take_over
from runtimes._standard.static_cache import StaticCache
from toolkit.cache_names import ATTENTION_MASK
from toolkit.errors import UnsupportedError
from toolkit.types import Step

__all__ = ["lower_attention"]

_OPSET = 23
_SOFTCAP = "Core ML's attention has no softcap"


def lower_attention(model: ir.Model, cache_length: int | None = None) -> list[Step]:
    """Replace every fused attention and drop the operator's function.

    Core ML scales by 1/sqrt(D), wants as many heads of keys as of queries, and knows no causality, window or slopes:
    queries are scaled, heads repeated, and one additive mask says all the rest. What has a softcap is written as matrix
    products. With `cache_length` the cache is a buffer of so many positions, which Core ML keeps as states, and what is
    attended to of it ends where `attention_mask` does.
    Raises UnsupportedError below opset 23, and for heads or head sizes that are not fixed.
    """
    nodes = attention_nodes(model)
    opset = model.opset_imports.get("", 0)
    if nodes and opset < _OPSET:
        raise UnsupportedError(
            f"the graph imports ONNX opset {opset}, which has no Attention", hint=f"Export with --opset {_OPSET}."
        )
    writer = Writer(model)
    cache = StaticCache(model, cache_length) if cache_length is not None else None
    if cache is not None:
        cache.prepare(writer, whole=False)
    mask = next((value for value in model.graph.inputs if value.name == ATTENTION_MASK), None)
    rule = _Rule(writer, cache, mask)
    for node in nodes:
        rule.replace(node)
    remove_function(model)
    return rule.steps()


class _Rule:
    """Rewrites attention nodes one by one and counts what became of them."""

    def __init__(self, writer: Writer, cache: StaticCache | None, mask: ir.Value | None) -> None:
        self._writer, self._cache, self._mask = writer, cache, mask
        self._end: ir.Value | None = None
        self._masks = Masks(writer, cache.write_indices if cache is not None else None)
        self._done: Counter[tuple[str, str]] = Counter()

    def steps(self) -> list[Step]:
        return [Step("lower", what, count, reason) for (what, reason), count in self._done.items()]

    def replace(self, node: ir.Node) -> None:
        """Put the standard form in the place of `node`."""
        attention = self._joined(node, read(node))
        mask = self._masks.of(node, attention, causal=attention.is_causal)
        dtype = attention.query.dtype
        attention = self._repeated(node, attention)
        if attention.softcap > 0:
            result = self._products(node, attention, mask)
            self._done["attention as MatMul and Softmax, not fused", _SOFTCAP] += 1
        else:
            result = self._standard(node, attention, mask)
            self._done["attention as standard Attention", ""] += 1
        if mask.attended is not None:
            zero = self._writer.constant(np.asarray(0.0), dtype)
            result = self._writer.node(node, "Where", [mask.attended, result, zero], dtype)
        take_over(node, result)

    def _joined(self, node: ir.Node, attention: FusedAttention) -> FusedAttention:
        if attention.past_key is None:
            return attention
        if self._cache is None:
            raise UnsupportedError(
                f"attention '{node.name}' has a cache, but the model is no language model",
                hint="Export the model with a family of kind decoder.",
            )
        self._done["caches of fixed length, kept as states", ""] += 1
        joined = self._cache.join(self._writer, node, attention)
        if self._mask is None:
            return joined
        key, value = (self._until_mask_ends(node, self._mask, tensor) for tensor in (joined.key, joined.value))
        return replace(joined, key=key, value=value)

    def _until_mask_ends(self, node: ir.Node, mask: ir.Value, buffer: ir.Value) -> ir.Value:
        """[B, H, L, D] as [B, H, T, D], of a mask [B, T]."""
        if self._end is None:
            self._end = self._writer.node(node, "Shape", [mask], ir.DataType.INT64, {"start": 1, "end": 2})
        cut = self._op(node, "Slice", [buffer, self._ints(0), self._end, self._ints(2)])
        columns = None if mask.shape is None else mask.shape[1]
        if buffer.shape is not None:
            cut.shape = ir.Shape([columns if axis == 2 else dim for axis, dim in enumerate(buffer.shape)])
        return cut

    def _repeated(self, node: ir.Node, attention: FusedAttention) -> FusedAttention:
        queries = _fixed(node, attention.query, 1)
        if queries == _fixed(node, attention.key, 1):
            return attention
        self._done["key/value heads repeated for their queries", "Core ML wants as many as of queries"] += 1
        key, value = (self._repeat(node, tensor, queries) for tensor in (attention.key, attention.value))
        return replace(attention, key=key, value=value)

    def _repeat(self, node: ir.Node, tensor: ir.Value, queries: int) -> ir.Value:
        """[B, Hkv, S, D] as [B, Hq, S, D]."""
        heads, size = _fixed(node, tensor, 1), _fixed(node, tensor, 3)
        apart = self._op(node, "Unsqueeze", [tensor, self._ints(2)])
        tiled = self._op(node, "Tile", [apart, self._ints(1, 1, queries // heads, 1, 1)])
        return self._op(node, "Reshape", [tiled, self._ints(0, queries, -1, size)])

    def _standard(self, node: ir.Node, attention: FusedAttention, mask: Mask) -> ir.Value:
        """`Attention` with its own scale; what is missing of the wanted one goes onto the queries."""
        factor = attention.scale * math.sqrt(_fixed(node, attention.query, 3))
        query = attention.query
        if not math.isclose(factor, 1.0, rel_tol=1e-6):
            query = self._op(node, "Mul", [query, self._number(factor, query.dtype)])
            self._done["queries scaled", "Core ML's own scale is 1/sqrt(D)"] += 1
        inputs = [query, attention.key, attention.value]
        return self._op(node, "Attention", inputs if mask.bias is None else [*inputs, mask.bias])

    def _products(self, node: ir.Node, attention: FusedAttention, mask: Mask) -> ir.Value:
        """softmax(softcap · tanh(q · kᵀ · scale / softcap) + mask) · v."""
        dtype = attention.query.dtype
        cap = self._number(attention.softcap, dtype)
        query = self._op(node, "Mul", [attention.query, self._number(attention.scale / attention.softcap, dtype)])
        turned = self._op(node, "Transpose", [attention.key], {"perm": [0, 1, 3, 2]})
        bounded = self._op(node, "Tanh", [self._op(node, "MatMul", [query, turned])])
        scores = self._op(node, "Mul", [bounded, cap])
        if mask.bias is not None:
            scores = self._op(node, "Add", [scores, mask.bias])
        return self._op(node, "MatMul", [self._op(node, "Softmax", [scores], {"axis": -1}), attention.value])

    def _op(
        self, node: ir.Node, op_type: str, inputs: list[ir.Value], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        return self._writer.node(node, op_type, inputs, inputs[0].dtype, attributes)

    def _number(self, number: float, dtype: ir.DataType | None) -> ir.Value:
        return self._writer.constant(np.asarray(number), dtype)

    def _ints(self, *numbers: int) -> ir.Value:
        return self._writer.constant(np.asarray(numbers, np.int64))


def _fixed(node: ir.Node, tensor: ir.Value, axis: int) -> int:
    size = static_dim(tensor, axis)
    if size is None:
        raise UnsupportedError(
            f"attention '{node.name}' has a number of heads or a head size that is not fixed",
            hint="Give the model fixed heads; only batch and sequence can be dynamic.",
        )
    return size
