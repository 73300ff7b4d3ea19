"""PVT: keys and values of a smaller picture; its attention is computed by hand, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.pvt.modeling_pvt import PvtEfficientSelfAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily, split_heads

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["pvt"]
NAMES = {
    "pvt-tiny": "Zetatech/pvt-tiny-224",
}
CONFIGS = {
    "pvt-tiny": {"model_type": "pvt", "architectures": ["PvtForImageClassification"], "num_labels": 1000},
}


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, PvtEfficientSelfAttention, _fused, cached=False)


def _fused(own: Any, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False) -> tuple[Tensor]:
    """Attention of every patch with those of the reduced picture."""
    size, seen = own.attention_head_size, hidden_states
    if own.sequences_reduction_ratio > 1:
        picture = hidden_states.transpose(1, 2).reshape(hidden_states.shape[0], -1, height, width)
        seen = own.layer_norm(own.sequence_reduction(picture).flatten(2).transpose(1, 2))
    query = split_heads(own.query(hidden_states), size)
    key, value = split_heads(own.key(seen), size), split_heads(own.value(seen), size)
    mixed, _ = attention(own, query, key, value, None, scaling=size**-0.5, is_causal=False)
    return (mixed.flatten(2),)


FAMILY = GenericFamily("pvt", CONFIGS, _swap)
