"""The attentions of a PyTorch model as they are called: their inputs, recorded at the toolkit's own operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from exporters.fused_attention import torch_op  # noqa: F401  (defines torch.ops.toolkit.fused_attention)
from exporters.reference import TorchSession
from exporters.torch_export import fused
from toolkit.compare.attention_map import AttentionCall
from toolkit.drift.measure import mapped
from toolkit.types import Tensors
from toolkit.weight_names import WRAPPERS, canonical_weight

__all__ = ["TorchAttention", "numbered"]


class TorchAttention:
    """A module's attentions, by the path that `exporters.canonical.module_path` gives the same one in the graph.

    The module computes attention through the toolkit's operator while it runs, as in the export. A path that is called
    several times in a run has `#2` and so on behind it from the second time on.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.ran_on = f"{TorchSession(module).ran_on}, attention through toolkit::fused_attention"
        self.unread: Mapping[str, str] = {}

    def calls(self, batch: Tensors, folder: Path) -> dict[str, AttentionCall]:
        """Run the batch; queries and keys lie memory-mapped in `folder`, which is the caller's to remove.

        Raises StageError where the model fails.
        """
        recorder = _Recorder(folder)
        with fused(self._module), recorder.paths(self._module), recorder:
            TorchSession(self._module).run(batch)
        return recorder.found

    def close(self) -> None:
        """Let the module go."""
        self._module = nn.Identity()


class _Recorder(TorchFunctionMode):
    """Keeps what the attention operators are called with, and lets them run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._stack: list[str] = []
        self.found: dict[str, AttentionCall] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        read = _READERS.get(func)
        if read is not None:
            self._keep(read(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def paths(self, module: nn.Module) -> Iterator[None]:
        """While this lasts, the innermost module that is running is known by its path."""
        with ExitStack() as stack:
            for name, part in module.named_modules():
                path = canonical_weight(f"{WRAPPERS[0]}{name}.").removesuffix(".")
                for handle in (
                    part.register_forward_pre_hook(lambda _, __, path=path: self._stack.append(path)),
                    part.register_forward_hook(lambda _, __, ___: self._leave(), always_call=True),
                ):
                    stack.callback(handle.remove)
            yield

    def _leave(self) -> None:
        self._stack.pop()

    def _keep(self, call: AttentionCall) -> None:
        """Queries and keys go to disk at once: those of all layers are larger than what else a batch needs."""
        path = numbered(next((each for each in reversed(self._stack) if each), ""), self.found)
        self._folder.mkdir(parents=True, exist_ok=True)
        place, index = self._folder, len(self.found)
        self.found[path] = replace(
            call,
            query=mapped(call.query, place / f"{index}.query.npy"),
            key=mapped(call.key, place / f"{index}.key.npy"),
        )


def numbered(path: str, taken: Mapping[str, Any]) -> str:
    """The path, or the path with the first free number from 2 on behind it."""
    number = 1
    while (name := path if number == 1 else f"{path}#{number}") in taken:
        number += 1
    return name


def _from_operator(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    scale: float,
    is_causal: bool,
    softcap: float,
    left: int,
    right: int,
) -> AttentionCall:
    return AttentionCall(
        _array(query),
        _array(key),
        _first(query, 0),
        scale,
        None if attn_mask is None else _array(attn_mask),
        None if alibi_slopes is None else _array(alibi_slopes),
        softcap,
        left,
        0 if is_causal else right,
    )


def _from_cached(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    *rest: Any,
) -> AttentionCall:
    joined = torch.cat([past_key, key], dim=2)
    return replace(_from_operator(query, joined, value, *rest), first=_first(query, past_key.shape[2]))


def _from_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    """Without heads [B, S, D] there is one head, in the mask as well."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if query.ndim == 3:
        query, key = query[:, None], key[:, None]
        attn_mask = attn_mask[:, None] if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
    return _from_operator(query, key, value, attn_mask, None, factor, is_causal, 0.0, -1, -1)


def _first(query: torch.Tensor, past: int) -> NDArray[np.int64]:
    return np.full(query.shape[0], past, np.int64)


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    plain = tensor.detach()
    return plain.float().numpy() if plain.dtype == torch.bfloat16 else plain.numpy()


_READERS: Mapping[Any, Callable[..., AttentionCall]] = {
    torch.ops.toolkit.fused_attention.default: _from_operator,
    torch.ops.toolkit.cached_attention.default: _from_cached,
    scaled_dot_product_attention: _from_sdpa,
}
