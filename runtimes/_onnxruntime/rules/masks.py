"""The one mask that ONNX Runtime's `Attention` takes, composed from mask, window and ALiBi slopes."""

from __future__ import annotations

from collections.abc import Hashable
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.fused_attention.node import FusedAttention
from runtimes._onnxruntime.emit import Emitter, same_dim
from runtimes._onnxruntime.rules.head_split import before_head_split

__all__ = ["MaskBuilder"]


class MaskBuilder:
    """Builds masks in the graph; layers that need the same one share it.

    Bool: True where the query may attend the key. Float: added to the scores, -inf where it may not.
    ONNX Runtime's kernel wants the last two dimensions written out as [Sq, Skv] and broadcasts only those before.
    """

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit
        self._built: dict[Hashable, ir.Value | None] = {}
        self.expanded = 0
        self.composed = 0

    def build(self, node: ir.Node, attention: FusedAttention) -> ir.Value | None:
        """The mask of this attention, rank 2 or 4, or None where every query attends every key."""
        key = _key(node, attention)
        if key is None:
            return _Mask(self._emit, node, attention).value(self)
        if key not in self._built:
            self._built[key] = _Mask(self._emit, node, attention).value(self)
        return self._built[key]


class _Mask:
    """One mask under construction before one node."""

    def __init__(self, emit: Emitter, node: ir.Node, attention: FusedAttention) -> None:
        self._emit, self._node, self._attention = emit, node, attention
        self._right = _right_window(attention)

    def value(self, log: MaskBuilder) -> ir.Value | None:
        mask = self._rank_2_or_4()
        if _has_geometry(self._attention, self._right):
            log.composed += 1
            return self._composed(mask)
        if mask is None or _written_out(mask, self._attention):
            return mask
        log.expanded += 1
        lengths = self._op("Concat", self._length(self._attention.query), self._all_keys(), axis=0)
        return self._op("Expand", mask, lengths)

    def _composed(self, mask: ir.Value | None) -> ir.Value:
        is_bool = mask is not None and mask.dtype == ir.DataType.BOOL
        distance = self._distance()
        allowed = self._folded("And", [mask if is_bool else None, *self._window(distance)])
        bias = self._folded("Add", [None if is_bool else mask, self._alibi(distance)])
        parts = [part for part in (allowed, bias) if part is not None]
        return parts[0] if len(parts) == 1 else self._op("Where", *parts, self._number(-np.inf))

    def _rank_2_or_4(self) -> ir.Value | None:
        mask = self._attention.attn_mask
        if mask is None or mask.shape is None or mask.shape.rank() != 3:
            return mask
        return self._op("Unsqueeze", mask, self._constant([0]), like=mask)

    def _window(self, distance: ir.Value) -> list[ir.Value]:
        left, right = self._attention.left_window_size, self._right
        sides = []
        if left >= 0:
            sides.append(self._op("GreaterOrEqual", distance, self._constant(-left)))
        if right >= 0:
            sides.append(self._op("LessOrEqual", distance, self._constant(right)))
        return sides

    def _alibi(self, distance: ir.Value) -> ir.Value | None:
        slopes = self._attention.alibi_slopes
        if slopes is None:
            return None
        away = self._op("CastLike", self._op("Abs", distance), slopes)
        column = self._op("Reshape", self._op("Neg", slopes), self._constant([1, -1, 1, 1]))
        return self._op("Mul", column, away)

    def _distance(self) -> ir.Value:
        """Key position less query position, int64 [Sq, Skv]."""
        rows = self._positions(self._length(self._attention.query))
        if self._attention.past_key is not None:
            rows = self._op("Add", rows, self._length(self._attention.past_key))
        return self._op("Sub", self._positions(self._all_keys()), self._op("Unsqueeze", rows, self._constant([1])))

    def _positions(self, length: ir.Value) -> ir.Value:
        return self._op("Range", self._constant(0), self._op("Squeeze", length), self._constant(1))

    def _all_keys(self) -> ir.Value:
        """How many keys there are, those of the past included."""
        new = self._length(self._attention.key)
        past = self._attention.past_key
        return new if past is None else self._op("Add", self._length(past), new)

    def _length(self, value: ir.Value) -> ir.Value:
        size = value.shape[2] if value.shape is not None else None
        if isinstance(size, int):
            return self._constant([size])
        whole = before_head_split(value)
        if whole is not None:
            # Reading the split tensor would keep the Reshape and Transpose alive.
            return self._op("Shape", whole, start=1, end=2)
        return self._op("Shape", value, start=2, end=3)

    def _folded(self, op_type: str, values: list[ir.Value | None]) -> ir.Value | None:
        present = [value for value in values if value is not None]
        return reduce(lambda left, right: self._op(op_type, left, right), present) if present else None

    def _number(self, number: float) -> ir.Value:
        dtype = self._attention.query.dtype or ir.DataType.FLOAT
        return self._emit.constant(np.asarray(number, dtype.numpy()))

    def _constant(self, numbers: int | list[int]) -> ir.Value:
        return self._emit.constant(np.asarray(numbers, np.int64))

    def _op(self, op_type: str, *inputs: ir.Value, like: ir.Value | None = None, **attributes: Any) -> ir.Value:
        node = self._emit.before(self._node, op_type, inputs, attributes)
        if like is not None:
            node.outputs[0].dtype = like.dtype
        return node.outputs[0]


def _right_window(attention: FusedAttention) -> int:
    """How many keys after its own a query sees (-1: all), as the mask must say it.

    Behind a past causality is in the mask: kernels differ on where the causal attribute counts from.
    """
    return 0 if attention.cached and attention.is_causal else attention.right_window_size


def _has_geometry(attention: FusedAttention, right: int) -> bool:
    return attention.alibi_slopes is not None or attention.left_window_size >= 0 or right >= 0


def _written_out(mask: ir.Value, attention: FusedAttention) -> bool:
    if attention.cached:
        return not _is_one(mask, -2) and not _is_one(mask, -1)
    return same_dim(mask, -2, attention.query, 2) and same_dim(mask, -1, attention.key, 2)


def _key(node: ir.Node, attention: FusedAttention) -> Hashable | None:
    """What makes two masks equal; None where a length is not known by name, so that nothing can be shared."""
    lengths = tuple(_dim(value) for value in (attention.query, attention.key))
    if None in lengths:
        return None
    inputs = (id(node.graph), id(attention.attn_mask), id(attention.alibi_slopes))
    past = _dim(attention.past_key) if attention.past_key is not None else None
    return (*inputs, attention.left_window_size, _right_window(attention), *lengths, past)


def _is_one(value: ir.Value, axis: int) -> bool:
    return value.shape is None or value.shape[axis] == 1


def _dim(value: ir.Value) -> int | str | None:
    if value.shape is None:
        return None
    dim = value.shape[2]
    return dim if isinstance(dim, int) else dim.value
