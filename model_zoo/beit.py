"""BEiT: relative positions as a bias of each layer."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

from model_zoo._generic import GenericFamily

__all__ = ["CONFIGS", "FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["beit"]
NAMES = {
    "beit-base": "microsoft/beit-base-patch16-224",
}
CONFIGS = {
    "beit-base": {
        "model_type": "beit", "architectures": ["BeitForImageClassification"], "num_labels": 1000,
        "use_relative_position_bias": True, "use_mask_token": False, "use_absolute_position_embeddings": False,
    },
}  # fmt: skip


def _uncached(model: PreTrainedModel) -> None:
    """The class keeps its index in a cache for good, and would keep the one of a run for shapes only."""
    for part in model.modules():
        if isinstance(part, BeitRelativePositionBias):
            plain = type(part).generate_relative_position_index
            part.generate_relative_position_index = getattr(plain, "__wrapped__", plain)


FAMILY = GenericFamily("beit", CONFIGS, _uncached)
