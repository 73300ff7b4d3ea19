"""The function body of `toolkit::FusedAttention`: its meaning in standard ONNX operators, opset 18 and later."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from exporters.fused_attention.node import FusedAttention
from exporters.fused_attention.schema import DOMAIN, OP_TYPE
from toolkit.errors import UnsupportedError

__all__ = ["Features", "build_function", "features_of"]

Use = Literal["none", "some", "all"]
MaskKind = Literal["none", "bool", "float"]

_INPUTS = ("query", "key", "value", "attn_mask", "alibi_slopes", "past_key", "past_value")
_ATTRIBUTES = {
    "scale": ir.AttributeType.FLOAT,
    "is_causal": ir.AttributeType.INT,
    "softcap": ir.AttributeType.FLOAT,
    "left_window_size": ir.AttributeType.INT,
    "right_window_size": ir.AttributeType.INT,
}


@dataclass(frozen=True, slots=True)
class Features:
    """What the attention nodes of one graph use: by all of them, some of them or none.

    `scaled` is False only where every scale is 1; `grouped` only where every node has as many key as query heads.
    """

    mask: MaskKind
    alibi: bool
    scaled: bool
    grouped: bool
    softcap: Use
    causal: Use
    left: Use
    right: Use
    cached: bool = False

    @property
    def inputs(self) -> int:
        """How many inputs every node has."""
        return 7 if self.cached else 5 if self.alibi else 4 if self.mask != "none" else 3

    @property
    def restricted(self) -> bool:
        """Whether any rule by position (causal, window) forbids pairs."""
        return (self.causal, self.left, self.right) != ("none", "none", "none")

    @property
    def rows_may_be_empty(self) -> bool:
        """A row is never empty under causality or a right window alone: key 0 stays."""
        return self.mask != "none" or self.left != "none"


def features_of(nodes: Iterable[FusedAttention]) -> Features:
    """The union of what the nodes use."""
    nodes = list(nodes)
    masks = [node.attn_mask for node in nodes if node.attn_mask is not None]
    cached = _use(node.cached for node in nodes)
    if cached == "some":
        raise UnsupportedError(
            "some attention layers of the graph have a cache and others have none",
            hint="Give every layer a past (of length 0 where it has none), or none of them.",
        )
    return Features(
        mask=_mask_kind(masks),
        alibi=any(node.alibi_slopes is not None for node in nodes),
        scaled=any(node.scale != 1.0 for node in nodes),
        grouped=any(_may_be_grouped(node) for node in nodes),
        softcap=_use(node.softcap > 0 for node in nodes),
        causal=_use(node.is_causal for node in nodes),
        left=_use(node.left_window_size >= 0 for node in nodes),
        right=_use(node.right_window_size >= 0 for node in nodes),
        cached=cached == "all",
    )


def build_function(features: Features, opset: int) -> ir.Function:
    """The one function `toolkit::FusedAttention` that serves every node with these features."""
    body = _Body(features)
    graph = ir.Graph(
        body.inputs[: features.inputs],
        body.outputs(),
        nodes=body.tape.nodes,
        opset_imports={"": opset},
        name=OP_TYPE,
    )
    attributes = [ir.Attr(name, kind, None) for name, kind in _ATTRIBUTES.items()]
    return ir.Function(DOMAIN, OP_TYPE, graph=graph, attributes=attributes)


class _Body:
    """Records the body's nodes; each method answers the value that it computes."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.tape = ir.tape.Tape()
        self.inputs = [ir.Value(name=name) for name in _INPUTS]
        self.query, self.key, self.value, self.mask, self.slopes, self.past_key, self.past_value = self.inputs

    def outputs(self) -> list[ir.Value]:
        """The output, and with a cache the past joined with what is new."""
        if not self.features.cached:
            return [self.output()]
        self.key = self._op("Concat", self.past_key, self.key, axis=2)
        self.value = self._op("Concat", self.past_value, self.value, axis=2)
        return [self.output(), self.key, self.value]

    def output(self) -> ir.Value:
        """softmax(scores) · value, with zeros where a query may attend nothing."""
        scores = self._softcapped(self._scores())
        distance = self._distance() if self.features.restricted or self.features.alibi else None
        if self.features.alibi and distance is not None:
            scores = self._op("Sub", scores, self._alibi(distance))
        allowed = self._allowed(distance) if self.features.restricted and distance is not None else None
        mask = self._float_mask if self.features.mask == "float" else self._bool_mask
        scores, empty = mask(scores, allowed)
        output = self._weigh(self._op("Softmax", scores, axis=-1))
        return output if empty is None else self._op("Where", empty, self._float(0.0), output)

    def _scores(self) -> ir.Value:
        """[B, Hq, Sq, Skv]. The query is scaled, not the product: it is smaller, and half precision overflows later."""
        query = (
            self._op("Mul", self.query, self._like_query(self._given("scale"))) if self.features.scaled else self.query
        )
        transposed = self._op("Transpose", self.key, perm=[0, 1, 3, 2])
        if not self.features.grouped:
            return self._op("MatMul", query, transposed)
        scores = self._op("MatMul", self._op("Reshape", query, self._by_group()), transposed)
        return self._op("Reshape", scores, self._by_head())

    def _weigh(self, weights: ir.Value) -> ir.Value:
        if not self.features.grouped:
            return self._op("MatMul", weights, self.value)
        grouped = self._op("MatMul", self._op("Reshape", weights, self._by_group()), self.value)
        return self._op("Reshape", grouped, self._by_head())

    def _by_group(self) -> ir.Value:
        """[B, Hq, Sq, X] as [B, Hkv, (Hq / Hkv) · Sq, X]: the heads of a group share their keys without a copy."""
        zero, heads, rest = self._ints([0]), self._op("Shape", self.key, start=1, end=2), self._ints([-1])
        return self._op("Concat", zero, heads, rest, zero, axis=0)

    def _by_head(self) -> ir.Value:
        zero, heads_and_queries = self._ints([0]), self._op("Shape", self.query, start=1, end=3)
        return self._op("Concat", zero, heads_and_queries, zero, axis=0)

    def _softcapped(self, scores: ir.Value) -> ir.Value:
        if self.features.softcap == "none":
            return scores
        given = self._given("softcap")
        if self.features.softcap == "all":
            return self._bounded(scores, self._like_query(given))
        on = self._op("Greater", given, self._constant(np.float32(0.0)))
        bound = self._op("Where", on, given, self._constant(np.float32(1.0)))
        return self._op("Where", on, self._bounded(scores, self._like_query(bound)), scores)

    def _bounded(self, scores: ir.Value, bound: ir.Value) -> ir.Value:
        return self._op("Mul", self._op("Tanh", self._op("Div", scores, bound)), bound)

    def _distance(self) -> ir.Value:
        """j - i for every query i and key j, int64 [Sq, Skv]; queries come after the past."""
        rows = self._op("Unsqueeze", self._positions(self.query), self._ints([1]))
        if self.features.cached:
            rows = self._op("Add", rows, self._op("Shape", self.past_key, start=2, end=3))
        return self._op("Sub", self._positions(self.key), rows)

    def _positions(self, tensor: ir.Value) -> ir.Value:
        count = self._op("Squeeze", self._op("Shape", tensor, start=2, end=3))
        return self._op("Range", self._int(0), count, self._int(1))

    def _alibi(self, distance: ir.Value) -> ir.Value:
        """slope · |i - j|, [Hq, Sq, Skv]."""
        away = self._like_query(self._op("Abs", distance))
        return self._op("Mul", self._op("Reshape", self._like_query(self.slopes), self._ints([-1, 1, 1])), away)

    def _allowed(self, distance: ir.Value) -> ir.Value:
        """Whether causality and the window let query i attend key j, bool [Sq, Skv]."""
        terms: list[ir.Value] = []
        if self.features.causal != "none":
            limit = self._op("LessOrEqual", distance, self._int(0))
            terms.append(self._unless(self.features.causal, "is_causal", "Equal", limit))
        if self.features.left != "none":
            limit = self._op("GreaterOrEqual", distance, self._op("Neg", self._given("left_window_size")))
            terms.append(self._unless(self.features.left, "left_window_size", "Less", limit))
        if self.features.right != "none":
            limit = self._op("LessOrEqual", distance, self._given("right_window_size"))
            terms.append(self._unless(self.features.right, "right_window_size", "Less", limit))
        return self._all(terms)

    def _unless(self, use: Use, attribute: str, off: str, limit: ir.Value) -> ir.Value:
        """The limit, lifted on nodes whose attribute compares with 0 as `off` says."""
        if use == "all":
            return limit
        return self._op("Or", limit, self._op(off, self._given(attribute), self._int(0)))

    def _bool_mask(self, scores: ir.Value, allowed: ir.Value | None) -> tuple[ir.Value, ir.Value | None]:
        """Scores with -inf at forbidden pairs, and which rows are empty. Empty rows are left whole: no NaN arises."""
        terms = [self.mask] if self.features.mask == "bool" else []
        terms += [] if allowed is None else [allowed]
        if not terms:
            return scores, None
        attend, empty = self._all(terms), None
        if self.features.rows_may_be_empty:
            count = self._reduce_max(self._op("Cast", attend, to=ir.DataType.INT32))
            empty = self._op("Equal", count, self._constant(np.int32(0)))
            attend = self._op("Or", attend, empty)
        return self._op("Where", attend, scores, self._float(-np.inf)), empty

    def _float_mask(self, scores: ir.Value, allowed: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """Scores plus the mask, and which rows are empty: those whose every bias is -inf."""
        bias, minus_infinity = self._like_query(self.mask), self._float(-np.inf)
        if allowed is not None:
            bias = self._op("Where", allowed, bias, minus_infinity)
        empty = self._op("Equal", self._reduce_max(bias), minus_infinity)
        bias = self._op("Where", empty, self._float(0.0), bias)
        return self._op("Add", scores, bias), empty

    def _all(self, terms: list[ir.Value]) -> ir.Value:
        first, *others = terms
        for term in others:
            first = self._op("And", first, term)
        return first

    def _reduce_max(self, tensor: ir.Value) -> ir.Value:
        return self._op("ReduceMax", tensor, self._ints([-1]), keepdims=1)

    def _given(self, attribute: str) -> ir.Value:
        kind = _ATTRIBUTES[attribute]
        own = "value_float" if kind == ir.AttributeType.FLOAT else "value_int"
        return self._op("Constant", **{own: ir.RefAttr(own, attribute, kind)})

    def _float(self, number: float) -> ir.Value:
        return self._like_query(self._constant(np.float32(number)))

    def _like_query(self, tensor: ir.Value) -> ir.Value:
        return self._op("CastLike", tensor, self.query)

    def _int(self, number: int) -> ir.Value:
        return self._constant(np.int64(number))

    def _ints(self, numbers: list[int]) -> ir.Value:
        return self._constant(np.array(numbers, np.int64))

    def _constant(self, number: np.generic | np.ndarray) -> ir.Value:
        return self._op("Constant", value=ir.tensor(np.asarray(number)))

    def _op(
        self, op_type: str, *inputs: ir.Value, **attributes: ir.Attr | ir.TensorProtocol | int | list[int]
    ) -> ir.Value:
        return self.tape.op(op_type, inputs, attributes)


def _use(flags: Iterable[bool]) -> Use:
    flags = list(flags)
    return "all" if all(flags) else "some" if any(flags) else "none"


def _mask_kind(masks: list[ir.Value]) -> MaskKind:
    """One float mask makes all of them float: a float mask can say all that a boolean one can."""
    if not masks:
        return "none"
    return "bool" if all(mask.dtype == ir.DataType.BOOL for mask in masks) else "float"


def _may_be_grouped(node: FusedAttention) -> bool:
    """Unknown head counts may differ."""
    query, key = _heads(node.query), _heads(node.key)
    return query is None or key is None or query != key


def _heads(tensor: ir.Value) -> int | None:
    dim = tensor.shape[1] if tensor.shape is not None and len(tensor.shape) == 4 else None
    return dim if isinstance(dim, int) else None
