"""DeBERTa v2 and v3: where tokens stand to each other is a bias from content and position; swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["deberta-v2"]
NAMES = {
    "deberta-v3-base": "microsoft/deberta-v3-base",
    "deberta-v3-small": "microsoft/deberta-v3-small",
}
CONFIGS = {
    "deberta-v3-base": {
        "model_type": "deberta-v2", "architectures": ["DebertaV2Model"], "vocab_size": 128100, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
        "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1, "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "deberta-v3-small": {
        "model_type": "deberta-v2", "architectures": ["DebertaV2Model"], "vocab_size": 128100, "hidden_size": 768,
        "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
        "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1, "position_biased_input": False,
        "type_vocab_size": 0,
    },
}  # fmt: skip


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, DisentangledSelfAttention, _fused, cached=False)


def _fused(
    own: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Attention whose bias [batch, heads, Sq, Skv] is the original's own, worked out from queries, keys and places."""
    heads, asked = own.num_attention_heads, hidden_states if query_states is None else query_states
    read = ((own.query_proj, asked), (own.key_proj, hidden_states), (own.value_proj, hidden_states))
    # [batch · heads, positions, head size], as the original's bias wants them
    flat = [own.transpose_for_scores(part(states), heads) for part, states in read]
    factor = 1 + sum(kind in own.pos_att_type for kind in ("c2p", "p2c"))
    bias = None
    if own.relative_attention:
        bias = own.disentangled_attention_bias(flat[0], flat[1], relative_pos, rel_embeddings, factor)
        bias = bias.unflatten(0, (-1, heads))
    query, key, value = (states.unflatten(0, (-1, heads)) for states in flat)
    scale = (own.attention_head_size * factor) ** -0.5
    mask = attention_mask.bool()
    mixed, _ = attention(own, query, key, value, mask, scaling=scale, is_causal=False, position_bias=bias)
    return mixed.flatten(2), None


FAMILY = GenericFamily("deberta-v2", CONFIGS, _swap)
