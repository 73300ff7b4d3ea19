"""The reference that every stage is compared with: the eager fp32 PyTorch model behind the session interface."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.errors import StageError
from toolkit.types import Tensors

__all__ = ["TorchSession"]


class TorchSession:
    """Runs an eval-mode module that takes keyword tensors and returns a dict of tensors."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module.eval()
        self.ran_on = f"torch {torch.__version__} eager fp32 cpu"

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name, as float32 (or integer) arrays. Raises StageError where the model itself fails."""
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        try:
            with torch.inference_mode():
                outputs = self._module(**tensors)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise StageError(
                "reference",
                f"the PyTorch model failed on its own sample inputs: {error}",
                hint="Check that the inputs fit the model's configuration.",
            ) from error
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def close(self) -> None:
        """Let the module go."""
        self._module = nn.Identity()
