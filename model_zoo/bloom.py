"""BLOOM: ALiBi instead of positions; its attention is computed by hand, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention, _get_alibi_slopes, dropout_add

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["bloom"]
NAMES = {
    "bloom-560m": "bigscience/bloom-560m",
}
CONFIGS = {
    "bloom-560m": {
        "model_type": "bloom", "architectures": ["BloomForCausalLM"], "vocab_size": 250880, "hidden_size": 1024,
        "n_layer": 24, "n_head": 16, "seq_length": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    },
}  # fmt: skip


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, BloomAttention, _fused)


def _fused(
    own: Any,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor | None,
    layer_past: Cache,
    **others: Any,
) -> tuple[Tensor, None]:
    """The projected attention with its residual, and no weights."""
    query, key, value = own._reshape(own.query_key_value(hidden_states))
    key, value = layer_past.update(key, value, own.layer_idx)
    slopes = _get_alibi_slopes(own.num_heads, hidden_states.device)
    mixed, _ = attention(
        own, query, key, value, attention_mask, scaling=own.inv_norm_factor, alibi_slopes=slopes.flatten()
    )
    output = own.dense(mixed.reshape(*hidden_states.shape[:2], -1))
    return dropout_add(output, residual, own.hidden_dropout, own.training), None


FAMILY = CausalFamily("bloom", CONFIGS, _swap)
