"""Megatron-BERT: BERT with the norms in front; its attention is computed by hand, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.megatron_bert.modeling_megatron_bert import MegatronBertSelfAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily, split_heads

__all__ = ["FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["megatron-bert"]
NAMES: dict[str, str] = {}


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, MegatronBertSelfAttention, _fused, cached=False)


def _fused(own: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **others: Any) -> tuple[Tensor, None]:
    """The attention of the positions with themselves, without its weights."""
    size = own.attention_head_size
    query, key, value = (split_heads(part(hidden_states), size) for part in (own.query, own.key, own.value))
    mixed, _ = attention(own, query, key, value, attention_mask, scaling=size**-0.5, is_causal=False)
    return mixed.flatten(2), None


FAMILY = GenericFamily("megatron-bert", adapt=_swap)
