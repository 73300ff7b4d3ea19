"""`toolkit::FusedAttention` with a cache to `com.microsoft::GroupQueryAttention`, rotary embedding inside.

The kernel appends to the cache where each row ends, so that past and present may be one buffer longer than what is
used. It needs rows padded on the right: a row's keys are its first `sum(attention_mask)` ones. What lies behind them
in present tensors means nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.fused_attention.node import FusedAttention, attention_nodes, read
from runtimes._onnxruntime import marks
from runtimes._onnxruntime.emit import Emitter, same_dim
from runtimes._onnxruntime.rules.head_split import int_dim, put_back, rows_of
from runtimes._onnxruntime.rules.rotary_tables import POSITIONS, Rotary, RotaryTables, rotary_of
from toolkit.types import Step

__all__ = ["lower_cached_attention"]

_MASK, _TOKENS = "attention_mask", "input_ids"
_OP = "GroupQueryAttention"
_THROUGH = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze"})


def lower_cached_attention(model: ir.Model, emit: Emitter, positions: int, *, query_lengths: bool = True) -> list[Step]:
    """Replace every attention that owns a cache, or none: layers must agree on where a row's keys lie.

    `positions` is how long rotary tables are made. `query_lengths` tells the kernel which new tokens are padding, which
    needs ONNX Runtime 1.32 where the graph runs; without it a graph takes several tokens behind a past for a single
    row only, and none of them padding. Where one layer does not fit, the step says which and why, and
    `lower_attention` takes them all.
    """
    nodes = [node for node in attention_nodes(model) if read(node).cached]
    if not nodes:
        return []
    mask = next((value for value in model.graph.inputs if value.name == _MASK), None)
    refusals = [f"{node.name}: {why}" for node in nodes if (why := _refusal(read(node), mask))]
    if refusals or mask is None:
        return [Step("lower", f"not lowered to {_OP}", len(nodes), refusals[0] if refusals else f"no {_MASK}")]
    rule = _Rule(model, emit, mask, nodes[0], positions, query_lengths)
    for node in nodes:
        rule.lower(node)
    model.metadata_props[marks.IN_PLACE] = marks.ALL_ROWS if query_lengths else marks.BY_ROW
    return rule.steps()


@dataclass(frozen=True, slots=True, eq=False)
class _Lengths:
    """What each row holds after this step, less 1 [B]; the longest []; how many of its new tokens are real [B]."""

    ends: ir.Value
    total: ir.Value
    new: ir.Value


class _Rule:
    def __init__(
        self, model: ir.Model, emit: Emitter, mask: ir.Value, first: ir.Node, positions: int, query_lengths: bool
    ) -> None:
        self._model, self._emit, self._mask, self._first = model, emit, mask, first
        self._tables = RotaryTables(model, emit, positions)
        self._positions, self._query_lengths = positions, query_lengths
        self._biases: dict[Hashable, ir.Value] = {}
        self._lengths: _Lengths | None = None
        self._outside: list[str] = []
        self._inside = self._count = 0

    def lower(self, node: ir.Node) -> None:
        attention = read(node)
        query, key, tables, interleaved = self._rotated(node, attention)
        rows = [rows_of(self._emit, node, value) for value in (query, key, attention.value)]
        lengths = self._lengths_of(rows[0])
        bias = self._alibi(attention, lengths, rows[0])
        cos, sin = tables or (None, None)
        inputs = [*rows, attention.past_key, attention.past_value, lengths.ends, lengths.total, cos, sin, None, bias]
        attributes = _attributes(attention)
        if tables:
            attributes |= {"do_rotary": 1, "rotary_interleaved": int(interleaved)}
        if self._query_lengths:
            inputs += [None, None, None, None, None, lengths.new]
        fused = self._emit.before(node, _OP, inputs, attributes, domain="com.microsoft", outputs=3)
        self._connect(node, attention, fused)
        self._count += 1

    def steps(self) -> list[Step]:
        steps = [Step("lower", f"FusedAttention -> {_OP}", self._count, self._reason())]
        if self._inside:
            self._model.metadata_props[marks.POSITIONS] = str(self._positions)
            what = f"tables of {self._positions} positions; {POSITIONS} are what the mask says"
            steps.append(Step("lower", "rotary embeddings taken into the attention", self._inside, what))
        if self._outside:
            steps.append(Step("lower", "rotary embeddings left before it", len(self._outside), self._outside[0]))
        if self._biases:
            steps.append(Step("lower", "ALiBi biases", len(self._biases), "from each row's own positions"))
        return steps

    def _reason(self) -> str:
        needs = (
            "needs ONNX Runtime 1.32" if self._query_lengths else "several tokens behind a past for one row at a time"
        )
        return f"grouped queries, cache in place; {needs}"

    def _rotated(
        self, node: ir.Node, attention: FusedAttention
    ) -> tuple[ir.Value, ir.Value, tuple[ir.Value, ir.Value] | None, bool]:
        """Query and key as the kernel takes them, and the tables that it rotates them with, if it does."""
        query, key = rotary_of(attention.query), rotary_of(attention.key)
        if query is None and key is None:
            return attention.query, attention.key, None, False
        found = self._shared_tables(query, key, int_dim(attention.query, 3) or 0)
        if isinstance(found, str) or query is None or key is None:
            self._outside.append(f"{node.name}: {found}")
            return attention.query, attention.key, None, False
        self._inside += 1
        return query.source, key.source, found, query.interleaved

    def _shared_tables(self, query: Rotary | None, key: Rotary | None, size: int) -> tuple[ir.Value, ir.Value] | str:
        if query is None or key is None:
            return "only one of query and key rotates"
        if (query.width, query.interleaved) != (key.width, key.interleaved):
            return "query and key rotate differently"
        if size % 16 or query.width % 16:
            return f"the kernel rotates multiples of 16 numbers, not {query.width} of {size}"
        found, other = self._tables.of(query), self._tables.of(key)
        return found if found == other or isinstance(found, str) else "query and key rotate by different angles"

    def _lengths_of(self, rows: ir.Value) -> _Lengths:
        if self._lengths is None:
            self._lengths = self._make_lengths(rows)
        return self._lengths

    def _make_lengths(self, rows: ir.Value) -> _Lengths:
        """Before the first attention, where the query's rows [B, S, H*D] are known already."""
        steps = self._op("Shape", self._by_token(rows), start=1, end=2)
        ones = self._op("ReduceSum", self._mask, self._ints([1]), keepdims=0)
        last = self._op(
            "Slice", self._mask, self._op("Neg", steps), self._ints([np.iinfo(np.int64).max]), self._ints([1])
        )
        new = self._op("ReduceSum", last, self._ints([1]), keepdims=0)
        total = self._op("Squeeze", self._op("Shape", self._mask, start=1, end=2))
        ends = self._op("Sub", ones, self._ints([1]))
        return _Lengths(*(self._op("Cast", value, to=int(ir.DataType.INT32)) for value in (ends, total, new)))

    def _by_token(self, rows: ir.Value) -> ir.Value:
        """Something [B, S, ..]: the tokens where there are any, so that the rows keep one reader."""
        return next((value for value in self._model.graph.inputs if value.name == _TOKENS), rows)

    def _alibi(self, attention: FusedAttention, lengths: _Lengths, rows: ir.Value) -> ir.Value | None:
        """[B, Hq, S, T]: minus slope times distance, from each row's own positions."""
        slopes = attention.alibi_slopes
        if slopes is None:
            return None
        if slopes not in self._biases:
            self._biases[slopes] = self._make_bias(slopes, lengths, rows)
        return self._biases[slopes]

    def _make_bias(self, slopes: ir.Value, lengths: _Lengths, rows: ir.Value) -> ir.Value:
        zero, one = (self._emit.constant(np.asarray(number, np.int32)) for number in (0, 1))
        length = self._op("Squeeze", self._op("Shape", self._by_token(rows), start=1, end=2))
        steps = self._op("Cast", length, to=int(ir.DataType.INT32))
        past = self._op("Sub", self._op("Add", lengths.ends, one), lengths.new)
        column = self._op("Unsqueeze", past, self._ints([1, 2, 3]))
        asks = self._op("Add", column, self._op("Unsqueeze", self._op("Range", zero, steps, one), self._ints([1])))
        distance = self._op("Abs", self._op("Sub", asks, self._op("Range", zero, lengths.total, one)))
        factors = self._op("Reshape", self._op("Neg", slopes), self._ints([1, -1, 1, 1]))
        return self._op("Mul", factors, self._op("CastLike", distance, slopes))

    def _connect(self, node: ir.Node, attention: FusedAttention, fused: ir.Node) -> None:
        output = fused.outputs[0]
        heads, size = int_dim(attention.query, 1) or 0, int_dim(attention.query, 3) or 0
        first = (
            list(fused.inputs[0].shape)[:2] if fused.inputs[0] is not None and fused.inputs[0].shape else [None, None]
        )
        output.dtype, output.shape = attention.output.dtype, ir.Shape([*first, heads * size])
        put_back(self._emit, node, attention.output, output)
        for old, new in zip((attention.present_key, attention.present_value), fused.outputs[1:], strict=True):
            if old is not None:
                new.shape, new.dtype = old.shape, old.dtype
                self._emit.replace(old, new)
        if node.graph is not None:
            node.graph.remove(node, safe=True)

    def _ints(self, numbers: list[int]) -> ir.Value:
        return self._emit.constant(np.asarray(numbers, np.int64))

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return self._emit.before(self._first, op_type, inputs, attributes).outputs[0]


def _refusal(attention: FusedAttention, mask: ir.Value | None) -> str:
    """Why the kernel cannot compute this attention, or nothing."""
    sizes = [int_dim(attention.query, 1), int_dim(attention.key, 1), int_dim(attention.query, 3)]
    if None in sizes or int_dim(attention.value, 3) != sizes[2] or (sizes[2] or 0) % 8:
        return f"heads of {sizes[2]} and {int_dim(attention.value, 3)} numbers; the kernel takes one multiple of 8"
    if not attention.is_causal:
        return "it is not causal"
    if not _is_at_the_border(attention):
        return "its cache is not the graph's own inputs and outputs"
    if attention.attn_mask is None or not _is_padding(attention.attn_mask, mask):
        return f"its mask is not the padding that {_MASK} gives"
    if attention.alibi_slopes is not None and not attention.alibi_slopes.is_initializer():
        return "its ALiBi slopes are computed"
    return ""


def _is_at_the_border(attention: FusedAttention) -> bool:
    """Whether nothing stands between the node and the tensors that the session binds to one buffer."""
    pasts, presents = (attention.past_key, attention.past_value), (attention.present_key, attention.present_value)
    fed = all(value is not None and value.is_graph_input() for value in pasts)
    return fed and all(value is not None and value.is_graph_output() for value in presents)


def _is_padding(value: ir.Value, mask: ir.Value | None) -> bool:
    """Whether `value` is bool [B, 1, 1, T] made of the graph's own mask [B, T] by reshaping and casting alone."""
    if value.dtype != ir.DataType.BOOL or value.shape is None or list(value.shape)[1:3] != [1, 1]:
        return False
    current: ir.Value | None = value
    while current is not None and current is not mask:
        node = current.producer()
        if node is None or node.op_type not in _THROUGH or node.domain:
            return False
        current = node.inputs[0]
    return mask is not None and current is mask and same_dim(value, 0, mask, 0) and same_dim(value, 3, mask, 1)


def _attributes(attention: FusedAttention) -> dict[str, int | float]:
    attributes: dict[str, int | float] = {
        "num_heads": int_dim(attention.query, 1) or 0,
        "kv_num_heads": int_dim(attention.key, 1) or 0,
        "scale": attention.scale,
    }
    if attention.left_window_size >= 0:
        attributes["local_window_size"] = attention.left_window_size + 1
    if attention.softcap:
        attributes["softcap"] = attention.softcap
    return attributes
