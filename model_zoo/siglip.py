"""SigLIP: its image and its text tower; the pooling head's attention is torch's own module, so it is swapped."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from exporters.fused_attention.interface import attention, swap_attention
from model_zoo._dual import DualFamily, Tower
from model_zoo._generic import split_heads

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES", "TASKS"]

MODEL_TYPES = ["siglip", "siglip_vision_model", "siglip_text_model"]
NAMES = {
    "siglip-base-vision": "google/siglip-base-patch16-224",
    "siglip-base-text": "google/siglip-base-patch16-224",
}
TASKS = {
    "siglip-base-vision": "image-embedding",
    "siglip-base-text": "text-embedding",
}
CONFIGS = {
    "siglip-base-vision": {
        "model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"], "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 224,
        "patch_size": 16,
    },
    "siglip-base-text": {
        "model_type": "siglip_text_model", "architectures": ["SiglipTextModel"], "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 32000,
        "max_position_embeddings": 64,
    },
}  # fmt: skip


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


FAMILY = DualFamily(
    "siglip",
    CONFIGS,
    _swap,
    towers={
        "image-embedding": Tower("vision_model", "SiglipVisionModel", "pooler_output"),
        "text-embedding": Tower("text_model", "SiglipTextModel", "pooler_output", fixed=True),
    },
)
