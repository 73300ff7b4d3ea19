"""PVT v2: as PVT, with overlapping patches; its attention is computed by hand, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.pvt_v2.modeling_pvt_v2 import PvtV2SelfAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily, split_heads

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["pvt_v2"]
NAMES = {
    "pvt-v2-b0": "OpenGVLab/pvt_v2_b0",
}
CONFIGS = {
    "pvt-v2-b0": {"model_type": "pvt_v2", "architectures": ["PvtV2ForImageClassification"], "num_labels": 1000},
}


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, PvtV2SelfAttention, _fused, cached=False)


def _fused(own: Any, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False) -> tuple[Tensor]:
    """Attention of every patch with those of the reduced picture, projected."""
    size, seen = own.attention_head_size, _reduced(own, hidden_states, height, width)
    query = split_heads(own.query(hidden_states), size)
    key, value = split_heads(own.key(seen), size), split_heads(own.value(seen), size)
    mixed, _ = attention(own, query, key, value, None, scaling=size**-0.5, is_causal=False)
    return (own.proj(mixed.flatten(2)),)


def _reduced(own: Any, hidden_states: Tensor, height: int, width: int) -> Tensor:
    """What keys and values are made of: pooled to 7 by 7, or strided by a convolution, or all there is."""
    if not own.linear_attention and own.spatial_reduction_ratio <= 1:
        return hidden_states
    picture = hidden_states.transpose(1, 2).reshape(hidden_states.shape[0], -1, height, width)
    if own.linear_attention:
        picture = own.pool(picture)
    seen: Tensor = own.layer_norm(own.spatial_reduction(picture).flatten(2).transpose(1, 2))
    return own.act(seen) if own.linear_attention else seen


FAMILY = GenericFamily("pvt-v2", CONFIGS, _swap)
