"""Hiera: attention within mask units, then of all with all; computed by hand, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.hiera.modeling_hiera import HieraMaskUnitAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["hiera"]
NAMES = {
    "hiera-tiny": "facebook/hiera-tiny-224-in1k-hf",
}
CONFIGS = {
    "hiera-tiny": {"model_type": "hiera", "architectures": ["HieraForImageClassification"], "num_labels": 1000},
}


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, HieraMaskUnitAttention, _fused, cached=False)


def _fused(own: Any, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, None]:
    """Attention within each window, the windows beside the batch; queries pooled where the stage asks for it.

    Tokens come as [batch, positions in a window · windows, channels].
    """
    batch, tokens, _ = hidden_states.shape
    inside = own.query_stride * own.window_size if own.use_mask_unit_attn else tokens
    windows = tokens // inside
    qkv = own.qkv(hidden_states).view(batch, inside, windows, 3, own.num_heads, own.head_dim)
    # [3, batch · windows, heads, positions, head size]
    query, key, value = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2).unbind(0)
    if own.query_stride > 1:
        query = query.view(*query.shape[:2], own.query_stride, -1, own.head_dim).amax(2)
    mixed, _ = attention(own, query, key, value, None, scaling=own.scale, is_causal=False)
    joined = mixed.reshape(batch, windows, -1, own.hidden_size_output).transpose(1, 2)
    return own.proj(joined.flatten(1, 2)), None


FAMILY = GenericFamily("hiera", CONFIGS, _swap)
