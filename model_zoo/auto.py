"""Any Transformers encoder, vision model or causal language model without a family file, from its configuration."""

from __future__ import annotations

from model_zoo._generic import GenericFamily

__all__ = ["FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES: list[str] = []
NAMES: dict[str, str] = {}

FAMILY = GenericFamily("auto")
