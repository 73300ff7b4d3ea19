"""SqueezeBERT: BERT with grouped convolutions for Linears; its attention is computed by hand, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.squeezebert.modeling_squeezebert import SqueezeBertSelfAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["squeezebert"]
NAMES = {
    "squeezebert-uncased": "squeezebert/squeezebert-uncased",
}
CONFIGS = {
    "squeezebert-uncased": {
        "model_type": "squeezebert", "architectures": ["SqueezeBertModel"], "vocab_size": 30528, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
}  # fmt: skip


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, SqueezeBertSelfAttention, _fused, cached=False)


def _fused(
    own: Any, hidden_states: Tensor, attention_mask: Tensor | None, output_attentions: bool = False
) -> dict[str, Tensor]:
    """Attention over hidden states [batch, channels, positions], which is how this model keeps them."""
    query, key, value = (_heads(own, part(hidden_states)) for part in (own.query, own.key, own.value))
    scale = own.attention_head_size**-0.5
    mixed, _ = attention(own, query, key, value, attention_mask, scaling=scale, is_causal=False)
    return {"context_layer": mixed.flatten(2).transpose(1, 2)}


def _heads(own: Any, states: Tensor) -> Tensor:
    """[batch, channels, positions] as [batch, heads, positions, head size]."""
    batch, _, positions = states.shape
    return states.view(batch, own.num_attention_heads, own.attention_head_size, positions).transpose(2, 3)


FAMILY = GenericFamily("squeezebert", CONFIGS, _swap)
