"""The KV cache as explicit tensors: past in, present out, with the joining left to the attention operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from toolkit.errors import StageError

__all__ = ["ExplicitCache", "ExplicitLayer", "active_cache"]

_ACTIVE: ContextVar[ExplicitCache | None] = ContextVar("toolkit_cache", default=None)


def active_cache() -> ExplicitCache | None:
    """The cache of the model that is running now with the toolkit's attention, or None."""
    return _ACTIVE.get()


class ExplicitLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's past [B, Hkv, P, D] and, after the forward pass, its present [B, Hkv, P + S, D].

    Deferred, `update` hands the new keys and values on as they are and the attention operator joins them with the
    past; else it joins them itself, which is what Transformers' own attention expects.
    """

    is_sliding = False

    def __init__(self, past_key: Tensor, past_value: Tensor, *, deferred: bool) -> None:
        super().__init__()
        self.keys, self.values = past_key, past_value
        self.is_initialized = True
        self.past = (past_key, past_value)
        self.present: tuple[Tensor, Tensor] | None = None
        self.waiting: Tensor | None = None
        self._deferred = deferred

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the past is there from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values that attention is to read."""
        if self._deferred:
            self.waiting = key_states
            return key_states, value_states
        self.present = (torch.cat([self.past[0], key_states], dim=2), torch.cat([self.past[1], value_states], dim=2))
        return self.present

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a mask covers, and where the first stands."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """The length of the past."""
        return self.past[0].shape[2]

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


class ExplicitCache(Cache):  # type: ignore[misc]
    """The pasts of all layers as Transformers' models take a cache, and their presents once a model has run."""

    def __init__(self, pasts: Sequence[tuple[Tensor, Tensor]], *, deferred: bool) -> None:
        self.explicit = [ExplicitLayer(key, value, deferred=deferred) for key, value in pasts]
        super().__init__(layers=list(self.explicit))

    @contextmanager
    def active(self) -> Iterator[None]:
        """While this lasts, the toolkit's attention finds the cache by `active_cache`."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def claim(self, key: Tensor) -> ExplicitLayer | None:
        """The layer that has just handed out these new keys and waits for its attention, or None."""
        for layer in self.explicit:
            if layer.waiting is key:
                layer.waiting = None
                return layer
        return None

    def presents(self) -> list[tuple[Tensor, Tensor]]:
        """Each layer's present. Raises StageError where a layer's attention never took its keys."""
        missed = [index for index, layer in enumerate(self.explicit) if layer.present is None]
        if missed:
            raise StageError(
                "export",
                f"layers {', '.join(map(str, missed))} do not attend to the keys that the cache was given",
                hint="Their attention does not go through Transformers' interface; the family needs a module swap.",
            )
        return [layer.present for layer in self.explicit if layer.present is not None]
