"""DeBERTa: where tokens stand to each other is a bias from content and position; swapped, being computed by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily, split_heads
from toolkit.errors import UnsupportedError

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["deberta"]
NAMES = {
    "deberta-base": "microsoft/deberta-base",
}
CONFIGS = {
    "deberta-base": {
        "model_type": "deberta", "architectures": ["DebertaModel"], "vocab_size": 50265, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
        "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": -1,
        "position_biased_input": False, "type_vocab_size": 0,
    },
}  # fmt: skip


def _swap(model: PreTrainedModel) -> None:
    if getattr(model.config, "talking_head", False):
        raise UnsupportedError(
            "a DeBERTa with talking heads mixes scores of several heads, which is no attention bias",
            hint="Export a model without talking_head, or your own module as `module:factory` with --allow-unfused.",
        )
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
    """Attention with the disentangled bias [batch, heads, Sq, Skv]; each head's q, k and v lie side by side."""
    size = own.attention_head_size
    query, key, value = split_heads(own.in_proj(hidden_states), 3 * size).chunk(3, dim=-1)
    query, value = (
        states + split_heads(bias[None, None], size) for states, bias in ((query, own.q_bias), (value, own.v_bias))
    )
    scale = (size * (1 + len(own.pos_att_type))) ** -0.5
    bias = None
    if own.relative_attention and rel_embeddings is not None and relative_pos is not None:
        bias = _bias(own, query * scale, key, relative_pos, rel_embeddings, scale)
    mixed, _ = attention(
        own, query, key, value, attention_mask.bool(), scaling=scale, is_causal=False, position_bias=bias
    )
    return mixed.flatten(2), None


def _bias(own: Any, query: Tensor, key: Tensor, relative_pos: Tensor, rel_embeddings: Tensor, scale: float) -> Tensor:
    """Content to position and position to content, over the table of all distances.

    The original cuts the table to the distances that the sequence has, which gives the same: a distance d stands at
    d + the largest one.
    """
    most = own.max_relative_positions
    places = relative_pos.view(1, 1, *relative_pos.shape[-2:]).long()
    table, found = rel_embeddings[: 2 * most].unsqueeze(0), []
    if "c2p" in own.pos_att_type:
        scores = query @ split_heads(own.pos_proj(table), own.attention_head_size).transpose(-1, -2)
        found.append(_at(scores, (places + most).clamp(0, 2 * most - 1)))
    if "p2c" in own.pos_att_type:
        asked = split_heads(own.pos_q_proj(table), own.attention_head_size) * scale
        found.append(_at(key @ asked.transpose(-1, -2), (most - places).clamp(0, 2 * most - 1)).transpose(-1, -2))
    return torch.stack(found).sum(0) if len(found) > 1 else found[0]


def _at(scores: Tensor, places: Tensor) -> Tensor:
    """Of scores [batch, heads, S, distances] those at `places` [1, 1, S, S]."""
    return scores.gather(-1, places.expand(*scores.shape[:-1], -1))


FAMILY = GenericFamily("deberta", CONFIGS, _swap)
