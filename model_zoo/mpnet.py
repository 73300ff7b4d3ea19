"""MPNet: relative positions as a bias that all layers share; its attention is computed by hand, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._generic import GenericFamily, split_heads

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES", "POOLING"]

MODEL_TYPES = ["mpnet"]
NAMES = {
    "all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
    "mpnet-base": "microsoft/mpnet-base",
}
CONFIGS = {
    "all-mpnet-base-v2": {
        "model_type": "mpnet", "architectures": ["MPNetModel"], "vocab_size": 30527, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 514,
        "layer_norm_eps": 1e-5,
    },
    "mpnet-base": {
        "model_type": "mpnet", "architectures": ["MPNetModel"], "vocab_size": 30527, "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 514,
        "layer_norm_eps": 1e-5,
    },
}  # fmt: skip
POOLING = {"all-mpnet-base-v2": ("mean", True)}


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, MPNetSelfAttention, _fused, cached=False)


def _fused(
    own: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    **others: Any,
) -> tuple[Tensor]:
    """The projected attention, without its weights."""
    size = own.attention_head_size
    query, key, value = (split_heads(part(hidden_states), size) for part in (own.q, own.k, own.v))
    mixed, _ = attention(
        own, query, key, value, attention_mask, scaling=size**-0.5, is_causal=False, position_bias=position_bias
    )
    return (own.o(mixed.flatten(2)),)


FAMILY = GenericFamily("mpnet", CONFIGS, _swap, POOLING)
