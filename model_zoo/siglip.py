"""SigLIP: vision and text towers; the pooling head's attention is torch's own module, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily, split_heads

__all__ = ["FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["siglip_vision_model", "siglip_text_model"]
NAMES: dict[str, str] = {}
"""The published checkpoints hold both towers, which no family takes; a tower saved alone is a model of its own."""


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, SiglipMultiheadAttentionPoolingHead, _fused, cached=False)


def _fused(own: Any, hidden_state: Tensor) -> Tensor:
    """The picture as one vector [batch, hidden]: what a learnt query sees of all patches, and an MLP on it."""
    part, batch = own.attention, hidden_state.shape[0]
    weights, biases = part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3)
    read = (own.probe.expand(batch, -1, -1), hidden_state, hidden_state)
    query, key, value = (
        split_heads(linear(states, weight, bias), part.head_dim)
        for states, weight, bias in zip(read, weights, biases, strict=True)
    )
    mixed, _ = attention(own, query, key, value, None, scaling=part.head_dim**-0.5, is_causal=False)
    pooled = part.out_proj(mixed.flatten(2))
    vector: Tensor = (pooled + own.mlp(own.layernorm(pooled)))[:, 0]
    return vector


FAMILY = GenericFamily("siglip", adapt=_swap)
