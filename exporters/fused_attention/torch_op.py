"""The PyTorch operator `toolkit::fused_attention`: one node in an exported program, SDPA when run eagerly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["cached_attention", "fused_attention"]


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    softcap: float = 0.0,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> Tensor:
    """Attention that exports as one `toolkit::FusedAttention` node, for use in your own modules.

    query [B, Hq, Sq, D], key [B, Hkv, Skv, D], value [B, Hkv, Skv, Dv]; answers [B, Hq, Sq, Dv].
    `attn_mask` is bool (True = attend) or float (added to the scores), rank 2 to 4, broadcastable to
    [B, Hq, Sq, Skv]; `alibi_slopes` is [Hq]; `scale` defaults to 1/sqrt(D). Inference only: it has no gradient.
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    output: Tensor = _fused_attention(
        query, key, value, attn_mask, alibi_slopes, factor, is_causal, softcap, left_window_size, right_window_size
    )
    return output


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = True,
    softcap: float = 0.0,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `fused_attention`, over the past [B, Hkv, P, D] and the new keys and values; query i stands at P + i.

    Answers the output [B, Hq, Sq, Dv] and the joined keys and values [B, Hkv, P + Sn, ..], which are the next past.
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    window = (left_window_size, right_window_size)
    answer: tuple[Tensor, Tensor, Tensor] = _cached_attention(
        query, key, value, past_key, past_value, attn_mask, alibi_slopes, factor, is_causal, softcap, *window
    )
    return answer


@torch.library.custom_op("toolkit::fused_attention", mutates_args=())
def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    is_causal: bool,
    softcap: float,
    left_window_size: int,
    right_window_size: int,
) -> Tensor:
    window = (left_window_size, right_window_size)
    if attn_mask is None and alibi_slopes is None and window == (-1, -1) and softcap == 0:
        return _by_token(_sdpa(query, key, value, scale=scale, mask=None, is_causal=is_causal))
    distance = _distance(query, key, 0)
    return _attend(query, key, value, attn_mask, alibi_slopes, scale, is_causal, softcap, window, distance)


@torch.library.custom_op("toolkit::cached_attention", mutates_args=())
def _cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    is_causal: bool,
    softcap: float,
    left_window_size: int,
    right_window_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    window = (left_window_size, right_window_size)
    keys, values = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    distance = _distance(query, keys, past_key.shape[2])
    output = _attend(query, keys, values, attn_mask, alibi_slopes, scale, is_causal, softcap, window, distance)
    return output, keys, values


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    is_causal: bool,
    softcap: float,
    window: tuple[int, int],
    distance: Tensor,
) -> Tensor:
    """Attention with the rules by position, which need `distance`, key position less query position [Sq, Skv]."""
    allowed = _allowed(distance, is_causal, window)
    bias = _bias(query, distance, attn_mask, alibi_slopes)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = attn_mask if allowed is None else attn_mask & allowed
    mask = _merged(allowed, bias)
    if softcap > 0:
        output = _softcapped(query, key, value, scale=scale, softcap=softcap, mask=mask)
    else:
        output = _sdpa(query, key, value, scale=scale, mask=mask, is_causal=False)
    return _by_token(output if mask is None else output.masked_fill(_empty_rows(mask), 0.0))


@_fused_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_settings: Any) -> Tensor:
    return _shaped(query, value)


@_cached_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *_settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (query.shape[0], key.shape[1], past_key.shape[2] + key.shape[2])
    return _shaped(query, value), key.new_empty(*shape, key.shape[3]), value.new_empty(*shape, value.shape[3])


def _shaped(query: Tensor, value: Tensor) -> Tensor:
    """An output without numbers, laid out as `_by_token` does."""
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)


def _by_token(output: Tensor) -> Tensor:
    """The same values laid out as [B, Sq, Hq, Dv], which is what models reshape next: no copy then."""
    return output.transpose(1, 2).contiguous().transpose(1, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None, is_causal: bool) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, is_causal=is_causal, enable_gqa=grouped
    )


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float, mask: Tensor | None
) -> Tensor:
    """SDPA has no softcap, so scores are made whole; a group's heads share their keys without a copy."""
    batch, heads, queries, _ = query.shape
    groups = (batch, key.shape[1], -1)
    scores = (query * scale).reshape(*groups, query.shape[3]) @ key.transpose(-1, -2)
    scores = softcap * torch.tanh(scores.view(batch, heads, queries, -1) / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1)
    return (weights.reshape(*groups, weights.shape[3]) @ value).view(batch, heads, queries, -1)


def _distance(query: Tensor, key: Tensor, past: int) -> Tensor:
    """j - i, [Sq, Skv]; queries come after the past."""
    rows = torch.arange(query.shape[2], device=query.device) + past
    return torch.arange(key.shape[2], device=query.device) - rows[:, None]


def _allowed(distance: Tensor, is_causal: bool, window: tuple[int, int]) -> Tensor | None:
    """What causality and the window allow, bool [Sq, Skv]."""
    left, right = window
    right = min(right, 0) if is_causal and right >= 0 else 0 if is_causal else right
    if left < 0 and right < 0:
        return None
    allowed = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        allowed &= distance >= -left
    if right >= 0:
        allowed &= distance <= right
    return allowed


def _bias(query: Tensor, distance: Tensor, attn_mask: Tensor | None, slopes: Tensor | None) -> Tensor | None:
    """What is added to the scores, in the query's type, broadcastable to [B, Hq, Sq, Skv]."""
    bias = None
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        bias = attn_mask.to(query.dtype)
    if slopes is None:
        return bias
    alibi = -slopes.to(query.dtype)[:, None, None] * distance.abs()
    return alibi if bias is None else bias + alibi


def _merged(allowed: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if allowed is None or bias is None:
        return bias if allowed is None else allowed
    return torch.where(allowed, bias, -math.inf)


def _empty_rows(mask: Tensor) -> Tensor:
    """Queries that may attend nothing, [.., Sq or 1, 1]."""
    attend = mask if mask.dtype == torch.bool else mask != -math.inf
    return ~attend.any(dim=-1, keepdim=True)
