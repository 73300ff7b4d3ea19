"""How `torch.onnx.export` writes attention: the toolkit's operator and plain SDPA become one ONNX node."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.values import Op, Opset

from exporters.fused_attention import torch_op  # noqa: F401  (defines torch.ops.toolkit.fused_attention)
from exporters.fused_attention.schema import DOMAIN, OP_TYPE, SCHEMA, UNCACHED_SCHEMA, VERSION
from toolkit.errors import UnsupportedError

__all__ = ["TRANSLATIONS"]

_NODE = Op(Opset(DOMAIN, VERSION), OP_TYPE, UNCACHED_SCHEMA)
_CACHED_NODE = Op(Opset(DOMAIN, VERSION), OP_TYPE, SCHEMA)


def _from_toolkit(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    alibi_slopes: Any,
    scale: float,
    is_causal: bool,
    softcap: float,
    left_window_size: int,
    right_window_size: int,
    *past: Any,
) -> Any:
    return (_CACHED_NODE if past else _NODE)(
        query,
        key,
        value,
        attn_mask,
        alibi_slopes,
        *past,
        scale=float(scale),
        is_causal=int(is_causal),
        softcap=float(softcap),
        left_window_size=left_window_size,
        right_window_size=right_window_size,
    )


def _with_cache(query: Any, key: Any, value: Any, past_key: Any, past_value: Any, *rest: Any) -> Any:
    return _from_toolkit(query, key, value, *rest, past_key, past_value)


def _from_sdpa(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`scaled_dot_product_attention` as a node; query, key and value have rank 3 (no heads), 4, or 5 without a mask.

    Raises UnsupportedError for dropout, other ranks, an unknown head size without a scale, or broadcast batches.
    """
    _check_sdpa(query, key, value, attn_mask, dropout_p)
    factor = _default_scale(query) if scale is None else scale
    if len(query.shape) == 5:
        folded = (_folded(tensor) for tensor in (query, key, value))
        return _unfolded(_from_toolkit(*folded, None, None, factor, is_causal, 0.0, -1, -1), query, value)
    if len(query.shape) == 4:
        return _from_toolkit(query, key, value, attn_mask, None, factor, is_causal, 0.0, -1, -1)
    query, key, value = (_with_heads(tensor) for tensor in (query, key, value))
    if attn_mask is not None and len(attn_mask.shape) == 3:
        attn_mask = _with_heads(attn_mask)
    output = _from_toolkit(query, key, value, attn_mask, None, factor, is_causal, 0.0, -1, -1)
    return opset18.Squeeze(output, [1])


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.toolkit.fused_attention.default: _from_toolkit,
    torch.ops.toolkit.cached_attention.default: _with_cache,
    torch.ops.aten.scaled_dot_product_attention.default: _from_sdpa,
}
"""For `torch.onnx.export(custom_translation_table=...)`. Attach the function body to the graph afterwards."""


def _check_sdpa(query: Any, key: Any, value: Any, attn_mask: Any, dropout_p: float) -> None:
    if dropout_p > 0:
        raise UnsupportedError(
            f"scaled_dot_product_attention is called with dropout {dropout_p}",
            hint="Put the module into eval mode before the export, and pass dropout_p=0 when not training.",
        )
    ranks = [len(tensor.shape) for tensor in (query, key, value)]
    if ranks not in ([3, 3, 3], [4, 4, 4]) and (ranks != [5, 5, 5] or attn_mask is not None):
        masked = "" if attn_mask is None else " and a mask"
        raise UnsupportedError(
            f"scaled_dot_product_attention is called with query, key and value of rank {ranks}{masked}",
            hint="Supported: [batch, heads, sequence, head size], [batch, sequence, head size], and, without a mask, "
            "one more axis before these.",
        )
    sizes = [tensor.shape[0] for tensor in (query, key, value)]
    if len({size for size in sizes if isinstance(size, int)}) > 1:
        raise UnsupportedError(
            f"scaled_dot_product_attention broadcasts batches of {sizes}",
            hint="Expand query, key and value to one batch size first.",
        )


def _default_scale(query: Any) -> float:
    head_size = query.shape[-1]
    if not isinstance(head_size, int):
        raise UnsupportedError(
            "scaled_dot_product_attention has no scale and its head size is dynamic",
            hint="Pass scale=, or give the head size a fixed value.",
        )
    return 1 / math.sqrt(head_size)


def _folded(tensor: Any) -> Any:
    """[A, B, H, S, D] as [A · B, H, S, D]."""
    sizes = opset18.Shape(tensor, start=2)
    return opset18.Reshape(tensor, opset18.Concat(opset18.Constant(value_ints=[-1]), sizes, axis=0))


def _unfolded(output: Any, query: Any, value: Any) -> Any:
    sizes = opset18.Concat(opset18.Shape(query, end=4), opset18.Shape(value, start=4), axis=0)
    return opset18.Reshape(output, sizes)


def _with_heads(tensor: Any) -> Any:
    """[B, S, D] as one head, [B, 1, S, D]."""
    return opset18.Unsqueeze(tensor, [1])
