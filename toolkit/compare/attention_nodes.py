"""Reading the attention nodes of a graph: which tensors each needs, and what it was called with, given those."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.canonical import module_path
from exporters.fused_attention.node import is_attention, read
from toolkit.compare.attention_map import AttentionCall, rotated

__all__ = ["Reading", "is_any_attention", "reading_of"]

Array = NDArray[Any]
Arrays = Mapping[str, Array]
"""Tensors of a graph by name, of one run."""

_MICROSOFT = "com.microsoft"
_KERNELS = "toolkit.cpu"
_OWN = frozenset((_KERNELS, f"Attention{form}") for form in ("", "Masked", "Packed", "PackedMasked"))
_NAMED = frozenset(
    {
        ("", "Attention"),
        *((_MICROSOFT, name) for name in ("Attention", "GroupQueryAttention", "MultiHeadAttention")),
        *((_MICROSOFT, name) for name in ("DecoderMaskedMultiHeadAttention", "PackedAttention", "PagedAttention")),
        *((_MICROSOFT, name) for name in ("PackedMultiHeadAttention", "QAttention", "SparseAttention")),
        *_OWN,
    }
)
_UNREAD_GROUPED = (9, 11, 12, 13, 14, 15)
"""Inputs of `GroupQueryAttention` that no rule of ours gives: positions, sinks, scales of a quantized cache."""
_THROUGH = frozenset({"Cast", "Reshape"})
"""What may stand between a softmax and the values that it weighs."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One attention of a graph: its module's path, the values it needs, and what makes a call of their arrays.

    `refusal` says why its form cannot be read exactly; then there is nothing else.
    """

    module: str
    operator: str
    values: tuple[ir.Value, ...] = ()
    call: Callable[[Arrays], AttentionCall] | None = None
    refusal: str = ""


def is_any_attention(node: ir.Node) -> bool:
    """Whether the node is an attention, or the softmax of one that is written as matrix products."""
    return is_attention(node) or (node.domain, node.op_type) in _NAMED or _is_product(node)


def reading_of(node: ir.Node) -> Reading:
    """How to read this attention."""
    module = _module(node) or str(node.name)
    operator = f"{node.domain}::{node.op_type}".removeprefix("::")
    try:
        values, call = _reader(node)(node)
    except _Unread as refusal:
        return Reading(module, operator, refusal=f"{operator} '{node.name}': {refusal}")
    return Reading(module, operator, tuple(value for value in values if value is not None), call)


class _Unread(Exception):  # noqa: N818 - it never leaves this file
    """This form of attention is not read."""


_Read = tuple[tuple[ir.Value | None, ...], Callable[[Arrays], AttentionCall]]


def _reader(node: ir.Node) -> Callable[[ir.Node], _Read]:
    if is_attention(node):
        return _fused
    if _is_product(node):
        return _products
    readers = {("", "Attention"): _standard, (_MICROSOFT, "GroupQueryAttention"): _grouped, **dict.fromkeys(_OWN, _own)}
    if (node.domain, node.op_type) not in readers:
        raise _Unread("no rule of this toolkit writes it, so it is not read")
    return readers[node.domain, node.op_type]


def _module(node: ir.Node) -> str:
    """The node's module; a node of an inlined function has none, so that of the first behind it that has."""
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop(0)
        if path := module_path(current):
            return path
        behind = [use.node for output in current.outputs for use in output.uses() if use.node not in seen]
        seen.update(behind)
        waiting += behind
    return ""


def _fused(node: ir.Node) -> _Read:
    attention = read(node)
    values = (attention.query, attention.key, attention.attn_mask, attention.alibi_slopes, attention.past_key)

    def call(arrays: Arrays) -> AttentionCall:
        query, key, mask, slopes, past = (_of(arrays, value) for value in values)
        return AttentionCall(
            query,
            _joined(past, key),
            _starts(query, past),
            attention.scale,
            mask,
            slopes,
            attention.softcap,
            attention.left_window_size,
            0 if attention.is_causal else attention.right_window_size,
        )

    return values, call


def _standard(node: ir.Node) -> _Read:
    """`Attention` of opsets 23 and 24, with heads apart or [B, S, H·D]; a softcap comes before the mask, as in the
    kernel of ONNX Runtime.
    """
    attributes = node.attributes
    if attributes.get_int("qk_matmul_output_mode", 0) and len(node.outputs) > 3:
        raise _Unread("it answers its scores")
    query, key, mask, past, lengths = (_input(node, index) for index in (0, 1, 3, 4, 6))
    heads = (attributes.get_int("q_num_heads", 0), attributes.get_int("kv_num_heads", 0))
    scale, softcap = attributes.get_float("scale", 0.0), attributes.get_float("softcap", 0.0)
    is_causal = bool(attributes.get_int("is_causal", 0))

    def call(arrays: Arrays) -> AttentionCall:
        rows, keys = _split(_of(arrays, query), heads[0]), _split(_of(arrays, key), heads[1])
        before = _of(arrays, past)
        factor = scale or 1 / math.sqrt(rows.shape[3])
        ends = _of(arrays, lengths)
        return AttentionCall(
            rows,
            _joined(before, keys),
            _starts(rows, before),
            factor,
            _of(arrays, mask),
            softcap=softcap,
            right=0 if is_causal else -1,
            ends=ends,
        )

    return (query, key, mask, past, lengths), call


def _own(node: ir.Node) -> _Read:
    """The toolkit's own operator: the standard one without a past, or with query, key and value in one tensor."""
    packed, masked = "Packed" in node.op_type, node.op_type.endswith("Masked")
    query, key = _input(node, 0), None if packed else _input(node, 1)
    mask = _input(node, 1 if packed else 3) if masked else None
    attributes = node.attributes
    heads = (attributes.get_int("q_num_heads", 0), attributes.get_int("kv_num_heads", 0))
    scale, is_causal = attributes.get_float("scale", 1.0), bool(attributes.get_int("is_causal", 0))

    def call(arrays: Arrays) -> AttentionCall:
        rows, keys = _of(arrays, query), _of(arrays, key)
        if packed:
            size = rows.shape[2] // (heads[0] + 2 * heads[1])
            rows, keys = np.split(rows, [heads[0] * size, (heads[0] + heads[1]) * size], axis=2)[:2]
        rows, keys = _split(rows, heads[0]), _split(keys, heads[1])
        starts, right = _starts(rows, None), 0 if is_causal else -1
        return AttentionCall(rows, keys, starts, scale, _of(arrays, mask), right=right)

    return (query, key, mask), call


def _grouped(node: ir.Node) -> _Read:
    """`GroupQueryAttention`, packed or not. Its present holds the keys that it attends to, rotated already."""
    attributes = node.attributes
    strange = [str(index) for index in _UNREAD_GROUPED if _input(node, index) is not None]
    if strange or attributes.get_int("smooth_softmax", 0) or attributes.get_int("qk_output", 0):
        raise _Unread(f"it has inputs {', '.join(strange)}" if strange else "it has another softmax or answers scores")
    query, lengths, total, cos, sin, bias, new = (_input(node, index) for index in (0, 5, 6, 7, 8, 10, 16))
    present = node.outputs[1] if len(node.outputs) > 1 else None
    if present is None or not present.name or lengths is None or total is None:
        raise _Unread("it answers no present keys, or is not told how many there are")
    heads = (attributes.get_int("num_heads", 0), attributes.get_int("kv_num_heads", 0))
    packed = _input(node, 1) is None
    tables = (cos, sin) if attributes.get_int("do_rotary", 0) else (None, None)
    interleaved = bool(attributes.get_int("rotary_interleaved", 0))
    scale, softcap = attributes.get_float("scale", 0.0), attributes.get_float("softcap", 0.0)
    window = attributes.get_int("local_window_size", -1)

    def call(arrays: Arrays) -> AttentionCall:
        keys = _of(arrays, present)
        rows = _grouped_queries(_of(arrays, query), heads, keys.shape[3], packed=packed)
        ends = _of(arrays, lengths).reshape(-1).astype(np.int64) + 1
        count = int(_of(arrays, total).reshape(()))
        first = _first(ends, count, rows.shape[2], _of(arrays, new))
        return AttentionCall(
            _turned(rows, first, _of(arrays, tables[0]), _of(arrays, tables[1]), interleaved=interleaved),
            keys[:, :, :count],
            first,
            scale or 1 / math.sqrt(keys.shape[3]),
            _of(arrays, bias),
            softcap=softcap,
            left=window - 1 if window >= 0 else -1,
            right=0,
            ends=ends,
        )

    return (query, present, lengths, total, *tables, bias, new), call


def _grouped_queries(query: Array, heads: tuple[int, int], size: int, *, packed: bool) -> Array:
    """[B, Hq, S, D] of [B, S, (Hq + 2 Hkv) · D], where query, key and value are packed, or of [B, S, Hq · D]."""
    return _split(query[..., : heads[0] * size] if packed else query, heads[0])


def _first(ends: NDArray[np.int64], total: int, queries: int, new: Array | None) -> NDArray[np.int64]:
    """Where each row's first query stands: behind its past, which ends where the new tokens begin."""
    if new is not None:
        return np.asarray(ends - new.reshape(-1).astype(np.int64))
    return np.zeros_like(ends) if total == queries else np.asarray(ends - queries)


def _turned(rows: Array, first: NDArray[np.int64], cos: Array | None, sin: Array | None, *, interleaved: bool) -> Array:
    if cos is None or sin is None:
        return rows
    # Past a row's end there is padding, which may stand beyond the tables.
    places = np.minimum(first[:, None] + np.arange(rows.shape[2]), cos.shape[0] - 1)
    return rotated(rows, cos[places][:, None], sin[places][:, None], interleaved=interleaved)


def _is_product(node: ir.Node) -> bool:
    """Whether a MatMul reads this Softmax on its left: what attention written as products has, and little else."""
    if node.domain or node.op_type != "Softmax" or node.attributes.get_int("axis", -1) not in {-1, 3}:
        return False
    uses = list(node.outputs[0].uses())
    uses += [use for each in uses if each.node.op_type in _THROUGH for use in each.node.outputs[0].uses()]
    return any(use.node.op_type == "MatMul" and use.idx == 0 for use in uses)


def _products(node: ir.Node) -> _Read:
    """softmax(softcap · tanh(q · kᵀ / softcap) + mask), as lowering for TensorRT writes it; q is scaled already.

    Of products in another order the scores themselves are read, which are larger.
    """
    scores, mask = _input(node, 0), None
    if _made_by(scores, "Add"):
        scores, mask = _inputs_of(scores, 2)
    scores, softcap = _before_softcap(scores)
    if softcap is None or not _made_by(scores, "MatMul"):
        return _scores(node)
    query, transposed = _inputs_of(scores, 2)

    def call(arrays: Arrays) -> AttentionCall:
        rows, keys = _of(arrays, query), _of(arrays, transposed).swapaxes(-1, -2)
        rows, keys = (array if array.ndim == 4 else array[:, None] for array in (rows, keys))
        return AttentionCall(rows, keys, _starts(rows, None), 1.0, _of(arrays, mask), softcap=softcap)

    return (query, transposed, mask), call


def _scores(node: ir.Node) -> _Read:
    read = _input(node, 0)

    def call(arrays: Arrays) -> AttentionCall:
        scores = _of(arrays, read)
        scores = scores if scores.ndim == 4 else scores[:, None]
        return AttentionCall(scores[..., :0], scores[:, :, :0, :0], _starts(scores, None), 1.0, scores=scores)

    return (read,), call


def _before_softcap(scores: ir.Value | None) -> tuple[ir.Value | None, float | None]:
    """What a softcap was applied to, and the softcap, or 0; None where that is no constant."""
    if not _made_by(scores, "Mul"):
        return scores, 0.0
    turned, cap = _inputs_of(scores, 2)
    if not _made_by(turned, "Tanh"):
        return scores, 0.0
    (divided,) = _inputs_of(turned, 1)
    if cap is None or cap.const_value is None or not _made_by(divided, "Div"):
        return scores, None
    return _inputs_of(divided, 2)[0], float(cap.const_value.numpy())


def _made_by(value: ir.Value | None, op_type: str) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and not node.domain and node.op_type == op_type


def _inputs_of(value: ir.Value | None, count: int) -> tuple[ir.Value | None, ...]:
    node = value.producer() if value is not None else None
    return tuple(node.inputs[:count]) if node is not None else (None,) * count


def _input(node: ir.Node, index: int) -> ir.Value | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return value if value is not None and value.name else None


def _of(arrays: Arrays, value: ir.Value | None) -> Any:
    """The value's array; None for no value."""
    return None if value is None else arrays[str(value.name)]


def _split(rows: Array, heads: int) -> Array:
    """[B, S, H · D] as [B, H, S, D]; what has its heads apart stays as it is."""
    if rows.ndim == 4:
        return rows
    return rows.reshape(rows.shape[0], rows.shape[1], heads, -1).transpose(0, 2, 1, 3)


def _joined(past: Array | None, key: Array) -> Array:
    return key if past is None else np.concatenate([past.astype(key.dtype), key], axis=2)


def _starts(query: Array, past: Array | None) -> NDArray[np.int64]:
    return np.full(query.shape[0], 0 if past is None else past.shape[2], np.int64)
