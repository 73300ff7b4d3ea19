"""One additive mask for all that forbids or biases attention: TensorRT takes no mask beside `is_causal`."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.fused_attention import FusedAttention
from runtimes._standard.nodes import Writer, same_dim

__all__ = ["Mask", "Masks"]


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """`bias` is added to the scores, in the model's dtype, rank 2 to 4, always finite.

    `attended` is bool [..., Sq or 1, 1]: False on rows whose result must be zeros; None where no row can be empty.
    """

    bias: ir.Value | None
    attended: ir.Value | None = None


class Masks:
    """Composes masks; layers that attend alike share one, so that it is computed once.

    `starts`, int64 [batch], says where each row's new tokens stand among the keys, where keys are a buffer that holds
    places not written yet; None where keys end with the new tokens.
    """

    def __init__(self, writer: Writer, starts: ir.Value | None = None) -> None:
        self._writer, self._starts = writer, starts
        self._made: dict[Hashable, Mask] = {}

    def of(self, anchor: ir.Node, attention: FusedAttention, *, causal: bool) -> Mask:
        """The mask that says all of this attention's restrictions; `causal` says whether that is one of them."""
        key = _identity(attention, causal)
        if key not in self._made:
            self._made[key] = _Composer(self._writer, anchor, attention, causal, self._starts).mask()
        return self._made[key]


class _Composer:
    """Writes the nodes of one mask before `anchor`; each method answers a value."""

    def __init__(
        self, writer: Writer, anchor: ir.Node, attention: FusedAttention, causal: bool, starts: ir.Value | None
    ) -> None:
        self.writer, self.anchor, self.attention, self.causal = writer, anchor, attention, causal
        self.starts = starts
        self.dtype = attention.query.dtype or ir.DataType.FLOAT

    def mask(self) -> Mask:
        mask = self.attention.attn_mask
        boolean = mask is not None and mask.dtype == ir.DataType.BOOL
        allowed = self._all(([mask] if mask is not None and boolean else []) + self._positional())
        bias = self._sum(([self._finite(mask)] if mask is not None and not boolean else []) + self._alibi())
        attended = self._attended(self._all([*self._permitted(), *([] if allowed is None else [allowed])]))
        if allowed is None:
            return Mask(None if bias is None else self._per_query(bias), attended)
        forbidden = self._float(self._lowest)
        composed = self._op("Where", self.dtype, allowed, bias or self._float(0.0), forbidden)
        return Mask(self._per_query(composed), attended)

    def _permitted(self) -> list[ir.Value]:
        """Where a float mask is not -inf, bool like the mask; nothing where no row of it is -inf alone for certain."""
        mask = self.attention.attn_mask
        if mask is None or mask.dtype in (None, ir.DataType.BOOL) or not _may_forbid(mask):
            return []
        least = self.writer.constant(np.asarray(mask.dtype.min), mask.dtype)
        return [self._op("GreaterOrEqual", ir.DataType.BOOL, mask, least)]

    @property
    def _lowest(self) -> float:
        # Half of the lowest number: a score added to it stays finite, so an empty row is never NaN.
        return float(self.dtype.min) / 2

    @property
    def _positional_terms(self) -> bool:
        return self.causal or max(self.attention.left_window_size, self.attention.right_window_size) >= 0

    def _positional(self) -> list[ir.Value]:
        """What causality, the window and the end of a buffer allow, bool [Sq, Skv] or [B, 1, Sq, Skv] each.

        Of query i and key j, j - i is the distance.
        """
        left, right = self.attention.left_window_size, self.attention.right_window_size
        limits = [limit for limit in (0 if self.causal else None, right if right >= 0 else None) if limit is not None]
        terms = [("LessOrEqual", min(limits))] if limits else []
        terms += [("GreaterOrEqual", -left)] if left >= 0 else []
        written = [] if self.starts is None or self.causal else [self._written(self.starts)]
        if not terms:
            return written
        distance = self._distance()
        return [self._op(name, ir.DataType.BOOL, distance, self._int(limit)) for name, limit in terms] + written

    def _written(self, starts: ir.Value) -> ir.Value:
        """Which places of the buffer hold something once the new tokens are in, bool [B, 1, 1, Skv]."""
        ends = self._op("Add", ir.DataType.INT64, self._by_row(starts), self._count(self.attention.query))
        return self._op("Less", ir.DataType.BOOL, self._positions(self.attention.key), ends)

    def _by_row(self, starts: ir.Value) -> ir.Value:
        return self._op("Unsqueeze", ir.DataType.INT64, starts, self._ints([1, 2, 3]))

    def _per_query(self, bias: ir.Value) -> ir.Value:
        """The bias with a row for every query: ONNX Runtime's `Attention` takes no mask that is one row for all."""
        mask, query = self.attention.attn_mask, self.attention.query
        if mask is not None and mask.shape is not None and len(mask.shape) == 4 and same_dim(mask, query, 2):
            return bias
        if self._positional_terms or self.attention.alibi_slopes is not None:
            return bias
        count = self._count(self.attention.query)
        one = self._ints([1])
        shape = self.writer.node(self.anchor, "Concat", [one, one, count, one], ir.DataType.INT64, {"axis": 0})
        return self._op("Expand", self.dtype, bias, shape)

    def _alibi(self) -> list[ir.Value]:
        """-slope · |i - j| in the model's dtype, [Hq, Sq, Skv]."""
        slopes = self.attention.alibi_slopes
        if slopes is None:
            return []
        away = self._cast(self._op("Abs", ir.DataType.INT64, self._distance()), ir.DataType.FLOAT)
        column = self._op("Reshape", slopes.dtype, slopes, self._ints([-1, 1, 1]))
        product = self._op("Mul", ir.DataType.FLOAT, self._cast(column, ir.DataType.FLOAT), away)
        return [self._finite(self._op("Neg", ir.DataType.FLOAT, product))]

    def _distance(self) -> ir.Value:
        rows = self._op("Unsqueeze", ir.DataType.INT64, self._positions(self.attention.query), self._ints([1]))
        if self.starts is not None:
            rows = self._op("Add", ir.DataType.INT64, self._by_row(self.starts), rows)
        elif self.attention.past_key is not None:
            rows = self._op("Add", ir.DataType.INT64, rows, self._count(self.attention.past_key))
        return self._op("Sub", ir.DataType.INT64, self._positions(self.attention.key), rows)

    def _positions(self, tensor: ir.Value) -> ir.Value:
        count = self._op("Squeeze", ir.DataType.INT64, self._count(tensor), self._ints([0]))
        return self._op("Range", ir.DataType.INT64, self._int(0), count, self._int(1))

    def _count(self, tensor: ir.Value) -> ir.Value:
        """How many positions the tensor has, int64 [1]."""
        return self.writer.node(self.anchor, "Shape", [tensor], ir.DataType.INT64, {"start": 2, "end": 3})

    def _finite(self, mask: ir.Value) -> ir.Value:
        """The float mask in the model's dtype: -inf, and what overflows there, become the lowest that is safe."""
        kind = mask.dtype or self.dtype
        low = self._op("Max", kind, mask, self.writer.constant(np.asarray(self._lowest), kind))
        return self._cast(low, self.dtype)

    def _attended(self, allowed: ir.Value | None) -> ir.Value | None:
        if allowed is None or not self._rows_may_be_empty():
            return None
        numbers = self._cast(allowed, ir.DataType.INT32)
        most = self.writer.node(self.anchor, "ReduceMax", [numbers, self._ints([-1])], None, {"keepdims": 1})
        return self._cast(most, ir.DataType.BOOL)

    def _rows_may_be_empty(self) -> bool:
        """Causality alone never empties a row: query i may attend key 0. A window may, where there are fewer keys."""
        return self.attention.attn_mask is not None or self.attention.left_window_size >= 0

    def _all(self, terms: list[ir.Value]) -> ir.Value | None:
        return self._fold("And", ir.DataType.BOOL, terms)

    def _sum(self, terms: list[ir.Value]) -> ir.Value | None:
        return self._fold("Add", self.dtype, terms)

    def _fold(self, op_type: str, dtype: ir.DataType, terms: list[ir.Value]) -> ir.Value | None:
        if not terms:
            return None
        folded = terms[0]
        for term in terms[1:]:
            folded = self._op(op_type, dtype, folded, term)
        return folded

    def _cast(self, tensor: ir.Value, dtype: ir.DataType) -> ir.Value:
        if tensor.dtype == dtype:
            return tensor
        return self.writer.node(self.anchor, "Cast", [tensor], dtype, {"to": int(dtype)})

    def _float(self, number: float) -> ir.Value:
        return self.writer.constant(np.asarray(number), self.dtype)

    def _int(self, number: int) -> ir.Value:
        return self.writer.constant(np.asarray(number, np.int64))

    def _ints(self, numbers: list[int]) -> ir.Value:
        return self.writer.constant(np.asarray(numbers, np.int64))

    def _op(self, op_type: str, dtype: ir.DataType | None, *inputs: ir.Value) -> ir.Value:
        return self.writer.node(self.anchor, op_type, inputs, dtype)


def _identity(attention: FusedAttention, causal: bool) -> Hashable:
    """What two attentions must have in common to share a mask: dimensions that are not known are never alike."""
    lengths = [_length(value) for value in (attention.query, attention.key)]
    lengths += [_length(attention.past_key)] if attention.past_key is not None else []
    return (
        *lengths,
        attention.query.dtype,
        causal,
        attention.left_window_size,
        attention.right_window_size,
        id(attention.attn_mask),
        _slopes(attention.alibi_slopes),
    )


def _length(value: ir.Value) -> Hashable:
    dim = value.shape[2] if value.shape is not None and len(value.shape) == 4 else None
    if isinstance(dim, int):
        return dim
    return ("named", dim.value) if dim is not None and dim.value is not None else ("value", id(value))


def _may_forbid(mask: ir.Value) -> bool:
    """Whether the float mask may hold -inf: a constant says so itself, as a table of relative positions does."""
    tensor = mask.const_value if not mask.is_graph_input() else None
    return tensor is None or bool(np.isneginf(tensor.numpy().astype(np.float32)).any())


def _slopes(slopes: ir.Value | None) -> Hashable:
    return None if slopes is None else id(slopes)
