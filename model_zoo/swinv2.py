"""Swin v2: cosine attention in shifted windows, with a bias from a small network; swapped, being computed by hand."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.swinv2.modeling_swinv2 import Swinv2SelfAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily, split_heads

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["swinv2"]
NAMES = {
    "swinv2-tiny": "microsoft/swinv2-tiny-patch4-window8-256",
}
CONFIGS = {
    "swinv2-tiny": {
        "model_type": "swinv2", "architectures": ["Swinv2ForImageClassification"], "num_labels": 1000,
        "image_size": 256, "window_size": 8, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "embed_dim": 96,
    },
}  # fmt: skip

_LARGEST_SCALE = math.log(100.0)


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, Swinv2SelfAttention, _fused, cached=False)


def _fused(
    own: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
) -> tuple[Tensor]:
    """Attention of unit vectors, scaled by what the layer learnt, within windows [batch · windows, positions, C]."""
    size = own.attention_head_size
    query, key, value = (split_heads(part(hidden_states), size) for part in (own.query, own.key, own.value))
    scale = own.logit_scale.clamp(max=_LARGEST_SCALE).exp()
    query, key = nn.functional.normalize(query, dim=-1) * scale, nn.functional.normalize(key, dim=-1)
    bias = _with_mask(_bias(own), attention_mask, hidden_states)
    mixed, _ = attention(own, query, key, value, bias, scaling=1.0, is_causal=False)
    return (mixed.flatten(2),)


def _bias(own: Any) -> Tensor:
    """[1, heads, positions, positions] of a window, a constant once the weights are known."""
    positions = own.window_size[0] * own.window_size[1]
    table = own.continuous_position_bias_mlp(own.relative_coords_table).view(-1, own.num_attention_heads)
    bias = table[own.relative_position_index.view(-1)].view(1, positions, positions, -1)
    scaled: Tensor = 16 * bias.permute(0, 3, 1, 2).sigmoid()
    return scaled


def _with_mask(bias: Tensor, mask: Tensor | None, hidden_states: Tensor) -> Tensor:
    """The mask [windows, positions, positions] counts twice, as in the original; windows follow each other."""
    if mask is None:
        return bias
    windows = mask.shape[0]
    rows = hidden_states.shape[0] // windows
    whole = (bias + 2 * mask.unsqueeze(1)).unsqueeze(0)
    return whole.expand(rows, -1, -1, -1, -1).flatten(0, 1)


FAMILY = GenericFamily("swinv2", CONFIGS, _swap)
