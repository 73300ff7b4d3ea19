"""Eager PyTorch with Transformers' own cache behind the `Decoder` interface: what a bundle is timed against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UnsupportedError, UsageError

__all__ = ["TorchDecoder"]


class TorchDecoder:
    """A Transformers causal LM, or a module that holds one, for rows of one length.

    It is given the attention that Transformers takes by default, PyTorch's fused one where the model supports it:
    families load models with the plain one, which is the slower to compare with. Raises UnsupportedError for a
    module without a causal LM.
    """

    def __init__(self, module: Any, *, limit: int, rows: int = 1) -> None:
        import torch

        self._model = _causal_lm(module).eval()
        if self._model._supports_sdpa:
            self._model.set_attn_implementation("sdpa")
        attention = self._model.config._attn_implementation
        self.ran_on = f"torch {torch.__version__} eager {self._model.dtype} cpu, {attention} attention".replace(
            "torch.float32", "fp32"
        )
        self.limit = limit
        self.rows = rows
        self._length = 0
        self.start(rows)

    def start(self, rows: int) -> None:
        """Begin anew with an empty cache."""
        from transformers import DynamicCache

        if not 1 <= rows <= self.rows:
            raise UsageError(f"{rows} rows", hint=f"Allowed: 1 to {self.rows}.")
        self._cache = DynamicCache(config=self._model.config)
        self._length = 0

    def forward(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], *, every: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens and answer logits; see `Decoder.forward`. Raises UsageError for rows of several lengths."""
        import torch

        if (lengths != tokens.shape[1]).any():
            raise UsageError("rows of several lengths", hint="Give rows of one length, or one row.")
        self._length += tokens.shape[1]
        if self._length > self.limit:
            raise UsageError(f"{self._length} positions, the cache holds {self.limit}", hint="Give fewer tokens.")
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.from_numpy(tokens),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=0 if every else 1,
            ).logits
        answer: NDArray[np.float32] = logits.float().numpy()
        return answer if every else answer[:, -1]

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        if not 0 <= length <= self._length:
            raise UsageError(f"cannot go back to {length} positions from {self._length}")
        self._cache.crop(length - self._length)
        self._length = length

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters, those that are tied counted once."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self._model.parameters())

    def close(self) -> None:
        """Let the model and its cache go."""
        self._model = self._cache = None


def _causal_lm(module: Any) -> Any:
    from transformers import PreTrainedModel

    for child in module.modules():
        if isinstance(child, PreTrainedModel) and child.can_generate():
            return child
    raise UnsupportedError(
        f"{type(module).__name__} holds no Transformers causal language model",
        hint="Time the bundle alone, or against another bundle.",
    )
