"""A model without memory for its weights: run for shapes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from toolkit.errors import UsageError

__all__ = ["shapes_only", "skeleton"]

T = TypeVar("T")

_FAKE = FakeTensorMode(allow_non_fake_inputs=True)


def shapes_only(run: Callable[[], T]) -> T:
    """What `run` answers of a skeleton and of inputs that it makes on the meta device, without gradients.

    Some models read values (of a mask, of a table of positions), which the meta device has none of: `run` is called
    again with fake tensors, which know those of constants, and take four times as long. What it raises then is raised.
    """
    with torch.no_grad():
        try:
            return run()
        except Exception:  # whatever the model raises where it cannot go on
            with _FAKE:
                return run()


def skeleton(cls: Any, config: Any, **arguments: Any) -> PreTrainedModel:
    """The model on the meta device, in eval mode. Raises UsageError where the class refuses the configuration."""
    config._attn_implementation = "eager"
    try:
        with torch.device("meta"):
            model: PreTrainedModel = cls(config, **arguments).eval()
    except Exception as error:
        raise UsageError(f"{cls.__name__} does not take this config.json: {error}", hint="Correct the file.") from error
    return model
