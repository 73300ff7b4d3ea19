"""A model without memory for its weights: run for shapes only."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from toolkit.errors import UsageError

__all__ = ["SHAPES_ONLY", "skeleton"]

SHAPES_ONLY = FakeTensorMode(allow_non_fake_inputs=True)
"""Transformers' mask functions read a mask's values unless tensors are fake: the meta device alone is not enough."""


def skeleton(cls: Any, config: Any, **arguments: Any) -> PreTrainedModel:
    """The model on the meta device, in eval mode. Raises UsageError where the class refuses the configuration."""
    config._attn_implementation = "eager"
    try:
        with torch.device("meta"):
            model: PreTrainedModel = cls(config, **arguments).eval()
    except Exception as error:
        raise UsageError(f"{cls.__name__} does not take this config.json: {error}", hint="Correct the file.") from error
    return model
