"""RoFormer: rotary positions, of the values too where asked; its attention is computed by hand, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.roformer.modeling_roformer import RoFormerSelfAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily, split_heads

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["roformer"]
NAMES = {
    "roformer-chinese-base": "junnyu/roformer_chinese_base",
}
CONFIGS = {
    "roformer-chinese-base": {
        "model_type": "roformer", "architectures": ["RoFormerModel"], "vocab_size": 50000, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 1536,
    },
}  # fmt: skip


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, RoFormerSelfAttention, _fused, cached=False)


def _fused(
    own: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    sinusoidal_pos: Tensor | None = None,
    output_attentions: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of the positions with themselves, without its weights."""
    size = own.attention_head_size
    query, key, value = (split_heads(part(hidden_states), size) for part in (own.query, own.key, own.value))
    if sinusoidal_pos is not None:
        turned = (query, key, value) if own.rotary_value else (query, key)
        query, key, value = (*own.apply_rotary_position_embeddings(sinusoidal_pos, *turned), value)[:3]
    mixed, _ = attention(own, query, key, value, attention_mask, scaling=size**-0.5, is_causal=False)
    return mixed.flatten(2), None


FAMILY = GenericFamily("roformer", CONFIGS, _swap)
