"""MPT: ALiBi instead of positions; its attention is computed by hand, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._decoder import CausalFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["mpt"]
NAMES = {
    "mpt-7b": "mosaicml/mpt-7b",
}
CONFIGS = {
    "mpt-7b": {
        "model_type": "mpt", "architectures": ["MptForCausalLM"], "vocab_size": 50432, "d_model": 4096,
        "n_layers": 32, "n_heads": 32, "expansion_ratio": 4, "max_seq_len": 2048, "bos_token_id": 0,
        "eos_token_id": 0,
    },
}  # fmt: skip


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model, MptAttention, _fused)


def _fused(
    own: Any,
    hidden_states: Tensor,
    position_bias: Tensor,
    past_key_values: Cache,
    attention_mask: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The projected attention, and no weights."""
    joined = own.Wqkv(hidden_states)
    if own.clip_qkv:
        joined = joined.clamp(min=-own.clip_qkv, max=own.clip_qkv)
    shape = (*hidden_states.shape[:2], own.n_heads, own.head_dim)
    query, key, value = (part.reshape(shape).transpose(1, 2) for part in joined.chunk(3, dim=2))
    key, value = past_key_values.update(key, value, own.layer_idx)
    mixed, _ = attention(
        own, query, key, value, attention_mask, scaling=own.softmax_scale, alibi_slopes=_slopes(own.n_heads)
    )
    return own.out_proj(mixed.reshape(*hidden_states.shape[:2], -1)), None


def _slopes(heads: int) -> Tensor:
    """[heads]: how much a key one position further away loses."""
    last_two: Tensor = build_mpt_alibi_tensor(heads, 2)[:, 0]
    return last_two[:, 1] - last_two[:, 0]


FAMILY = CausalFamily("mpt", CONFIGS, _swap)
