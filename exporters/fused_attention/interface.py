"""Transformers' attention interface: models switched to `toolkit` compute attention through our operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from exporters.cache import active_cache
from exporters.fused_attention.torch_op import cached_attention, fused_attention
from toolkit.errors import UnsupportedError

__all__ = ["NAME", "attention", "attention_mask", "register", "swap_attention"]

NAME = "toolkit"
"""The value of `attn_implementation` that selects the toolkit's operator."""

_MARK = "_toolkit_rule"
_HARMLESS = frozenset({
    "cache_position", "deterministic", "logits_to_keep", "num_items_in_batch", "output_hidden_states",
    "output_router_logits", "past_key_values", "position_embeddings", "position_ids", "return_dict",
    "sliding_window", "use_cache",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a mask of ours leaves to the node: causality, and how many keys before its own a query sees."""

    is_causal: bool
    left_window: int = -1


def register() -> None:
    """Make `attn_implementation="toolkit"` known to Transformers. Calling it again changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, attention_mask)


def swap_attention(
    model: PreTrainedModel, kind: type[nn.Module], fused: Callable[..., Any], *, cached: bool = True
) -> None:
    """Give modules of `kind`, which compute attention by hand, a forward that goes through the operator.

    `fused(module, ...)` is called as Transformers calls the module, and answers what it does; only while the toolkit's
    attention is selected and, where it is `cached`, a cache is active. Otherwise the module stays itself.
    `set_attn_implementation` then works on the model, whose own code would refuse it.
    """

    def select(name: str) -> None:
        model.config._attn_implementation = name

    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation = select
        if isinstance(part, kind):
            part.forward = _either(model.config, partial(fused, part), part.forward, cached)


def _either(config: Any, fused: Callable[..., Any], original: Callable[..., Any], cached: bool) -> Callable[..., Any]:
    def forward(*arguments: Any, **named: Any) -> Any:
        selected = config._attn_implementation == NAME and (not cached or active_cache() is not None)
        return (fused if selected else original)(*arguments, **named)

    return forward


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as Transformers' models call it: query [B, Hq, Sq, D] and so on, answered as [B, Sq, Hq, Dv].

    `sliding_window` needs nothing here: windows are in the mask, or noted on it by `attention_mask` below. Where the
    model's cache waits for these keys, the node owns past and present. Raises UnsupportedError for dropout and for
    every argument that would change the result and that the operator does not have.
    """
    _refuse(module, dropout, kwargs)
    cache = active_cache()
    layer = cache.claim(key) if cache is not None else None
    rule = _rule(module, query, attention_mask, is_causal)
    mask = _with_bias(attention_mask, position_bias)
    settings: dict[str, Any] = {
        "attn_mask": mask,
        "alibi_slopes": alibi_slopes,
        "scale": scaling,
        "is_causal": rule.is_causal,
        "softcap": softcap or 0.0,
        "left_window_size": rule.left_window,
    }
    if layer is None:
        return fused_attention(*_with_one_batch(query, key, value), **settings).transpose(1, 2), None
    output, *present = cached_attention(query, key, value, *layer.past, **settings)
    layer.present = (present[0], present[1])
    return output.transpose(1, 2), None


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """The mask of all layers of a kind, True = attend: the padding [B, 1, 1, Skv] where that says all, else whole.

    Plain causal and plain bidirectional attention need no [Sq, Skv] mask: the former is an attribute of the node.
    None where there is no padding either. Windows, packed sequences and other patterns give [B, 1, Sq, Skv]; with an
    explicit cache the node knows where its queries stand, so that there a window is an attribute as well.
    """
    window = _window_of(mask_function, kwargs.get("config")) if active_cache() is not None else None
    if window is not None and attention_mask is not None and attention_mask.ndim == 2:
        return _marked(attention_mask.to(torch.bool)[:, None, None, :], _Rule(True, window))
    is_plain_causal = mask_function is causal_mask_function and allow_is_causal_skip and _starts_at_zero(q_offset)
    # One query beside a longer cache sees all of it: that is no longer the upper-left causal rule.
    is_plain_causal = is_plain_causal and not statically_known_true(q_length == 1)
    is_plain = is_plain_causal or (mask_function is bidirectional_mask_function and allow_is_bidirectional_skip)
    if is_plain and attention_mask is None:
        return None
    if is_plain and attention_mask is not None and _covers_keys(attention_mask, kv_length, kv_offset):
        return _marked(attention_mask[:, None, None, :], _Rule(is_plain_causal))
    whole = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        **kwargs,
    )
    return _marked(whole, _Rule(False))


def _marked(mask: Tensor, rule: _Rule) -> Tensor:
    """Note on the tensor what the node must add: its shape alone cannot tell."""
    setattr(mask, _MARK, rule)
    return mask


def _window_of(mask_function: Callable[..., Any], config: Any) -> int | None:
    """How many keys before its own a query sees (-1: all), or None where the rule is another than causal or window.

    A sliding window is a closure, so it is told by what it answers around its edges.
    """
    if mask_function is causal_mask_function:
        return -1
    window = getattr(config, "sliding_window", None)
    if not window:
        return None
    edges = sorted({0, 1, 2, window - 1, window, window + 1, 2 * window, 2 * window + 1})
    positions = [(query, key) for query in edges for key in edges]
    said = [bool(mask_function(0, 0, torch.tensor(query), torch.tensor(key))) for query, key in positions]
    return window - 1 if said == [query - window < key <= query for query, key in positions] else None


def _starts_at_zero(offset: int | Tensor) -> bool:
    return not isinstance(offset, Tensor) and bool(statically_known_true(offset == 0))


def _covers_keys(mask: Tensor, kv_length: int, kv_offset: int) -> bool:
    return (
        mask.ndim == 2
        and mask.dtype == torch.bool
        and _starts_at_zero(kv_offset)
        and bool(statically_known_true(mask.shape[1] == kv_length))
    )


def _rule(module: nn.Module, query: Tensor, mask: Tensor | None, asked: bool | None) -> _Rule:
    """What the node must add to the mask; a mask of our own says so itself."""
    mark = getattr(mask, _MARK, None)
    if isinstance(mark, _Rule) and not (mark.left_window < 0 and statically_known_true(query.shape[2] == 1)):
        return mark
    return _Rule(_is_causal(module, query, mask, asked))


def _is_causal(module: nn.Module, query: Tensor, mask: Tensor | None, asked: bool | None) -> bool:
    """Whether the node must add causality to a mask that is not ours.

    A mask that the model made is complete unless it is a padding mask (one row for all queries) of a module that
    calls itself causal. Without a mask the rule is that of Transformers' SDPA: causal unless the module says not.
    """
    if statically_known_true(query.shape[2] == 1):
        return False
    if mask is None:
        return bool(getattr(module, "is_causal", True) if asked is None else asked)
    is_padding = bool(statically_known_true(mask.shape[-2] == 1))
    return is_padding and bool(getattr(module, "is_causal", False) if asked is None else asked)


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if bias is None or mask is None:
        return mask if bias is None else bias
    if mask.dtype == torch.bool:
        # The lowest finite number, as the models' authors use: -inf turns a padded row into NaN on some runtimes.
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return bias + mask


def _with_one_batch(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Learned queries come with batch 1, and so may keys; the operator wants one batch size."""
    if statically_known_true(query.shape[0] == key.shape[0]):
        return query, key, value
    if statically_known_true(query.shape[0] == 1):
        return query.expand(key.shape[0], -1, -1, -1), key, value
    if statically_known_true(key.shape[0] == 1):
        return query, key.expand(query.shape[0], -1, -1, -1), value.expand(query.shape[0], -1, -1, -1)
    return query, key, value


def _refuse(module: nn.Module, dropout: float, kwargs: dict[str, Any]) -> None:
    name = type(module).__name__
    if dropout:
        raise UnsupportedError(
            f"{name} asks for attention dropout {dropout}", hint="Put the model into eval mode: model.eval()."
        )
    unknown = [
        key for key, given in kwargs.items() if key not in _HARMLESS and given is not None and given is not False
    ]
    if unknown:
        raise UnsupportedError(
            f"{name} passes {', '.join(sorted(unknown))} to its attention, which the toolkit's operator does not have",
            hint="Supported: mask, position bias, scaling, causality, softcap, grouped queries. Attention sinks "
            "(s_aux), packed sequences (cu_seq_lens) and returned attention weights (output_attentions) are not.",
        )
