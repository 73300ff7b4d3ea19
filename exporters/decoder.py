"""A causal language model with its cache as explicit inputs and outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from exporters.cache import ExplicitCache
from exporters.fused_attention.interface import NAME
from toolkit.cache_names import past_names, present_names

__all__ = ["CausalLM", "past_names", "present_names", "with_all_logits"]


class CausalLM(nn.Module):
    """A Transformers causal LM whose forward takes and answers what the ONNX graph does.

    `input_ids` and `position_ids` [B, S], `attention_mask` [B, P + S] (1 = real), each layer's past [B, Hkv, P, D];
    answers `logits` [B, S, V] and each layer's present. With `last_logits` only those after each row's last real
    token, [B, 1, V]: rows are padded on the right, so that is not always the last column.
    """

    def __init__(self, model: nn.Module, layers: int, *, last_logits: bool = False) -> None:
        super().__init__()
        self.model = model
        self.last_logits = last_logits
        self._pasts = past_names(layers)
        self._presents = present_names(layers)
        self._last: Tensor | None = None
        head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        head.register_forward_pre_hook(self._keep_last)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **pasts: Tensor
    ) -> dict[str, Tensor]:
        """All outputs by name; arguments as the class says."""
        names = self._pasts
        pairs = [(pasts[key], pasts[value]) for key, value in zip(names[::2], names[1::2], strict=True)]
        config: Any = self.model.config
        cache = ExplicitCache(pairs, deferred=config._attn_implementation == NAME)
        self._last = _last_real(attention_mask, input_ids.shape[1]) if self.last_logits else None
        with cache.active():
            logits: Tensor = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            ).logits
        self._last = None
        tensors = [tensor for pair in cache.presents() for tensor in pair]
        return {"logits": logits, **dict(zip(self._presents, tensors, strict=True))}

    def _keep_last(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Before the head, so that the largest product of a prefill is one row high."""
        if self._last is None:
            return None
        hidden, *rest = inputs
        index = self._last[:, None, None].expand(-1, 1, hidden.shape[2])
        return (torch.gather(hidden, 1, index), *rest)


def with_all_logits(module: nn.Module) -> nn.Module:
    """The same model, not a copy, answering logits at every position: a text's perplexity needs them all."""
    if not (isinstance(module, CausalLM) and module.last_logits):
        return module
    return CausalLM(module.model, len(module._pasts) // 2).eval()


def _last_real(attention_mask: Tensor, length: int) -> Tensor:
    """Where each row's last real token is among the `length` new ones, int64 [B]; 0 in a row with none."""
    return (attention_mask[:, attention_mask.shape[1] - length :].sum(dim=1) - 1).clamp(min=0)
