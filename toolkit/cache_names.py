"""What a language model's cache tensors are called, in and out, and the input that only a cache in place has."""

from __future__ import annotations

__all__ = [
    "ATTENTION_MASK",
    "WRITE_INDICES",
    "is_past",
    "is_present",
    "past_names",
    "past_of",
    "present_names",
    "present_of",
]

ATTENTION_MASK = "attention_mask"
WRITE_INDICES = "write_indices"
"""Where each row's new tokens go, int64 [batch]: an input of graphs whose cache is a buffer of full length, and only
of those."""

_PAST, _PRESENT = "past_key_values.", "present."


def past_names(layers: int) -> list[str]:
    """`past_key_values.0.key`, `past_key_values.0.value`, and so on."""
    return _names(_PAST, layers)


def present_names(layers: int) -> list[str]:
    """`present.0.key`, `present.0.value`, and so on."""
    return _names(_PRESENT, layers)


def is_past(name: str) -> bool:
    """Whether an input is part of the cache."""
    return name.startswith(_PAST)


def is_present(name: str) -> bool:
    """Whether an output is part of the cache."""
    return name.startswith(_PRESENT)


def present_of(past: str) -> str:
    """The output that the next step takes as this input."""
    return _PRESENT + past.removeprefix(_PAST)


def past_of(present: str) -> str:
    """The input that takes this output in the next step."""
    return _PAST + present.removeprefix(_PRESENT)


def _names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
