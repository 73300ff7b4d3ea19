"""What a recipe asks of runtimes that only some of them do, as their literals say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit import plugins
from toolkit.errors import UnsupportedError
from toolkit.recipe.document import Quantization
from toolkit.target import Target

__all__ = ["check_runtimes", "taken_by"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A key's value that a runtime must list in a literal of its own, and what one does that does not."""

    value: str
    literal: str
    lacks: str


_ASKED = {
    "embeddings": _Asked("int8", "EMBEDDINGS", "does not look rows up in embedding tables of int8"),
    "ranges": _Asked("per-token", "RANGES", "does not measure the range of each token's vector"),
}


def check_runtimes(changes: Mapping[Target, Quantization]) -> None:
    """Raise UnsupportedError where a runtime would not do what its target's changes ask for.

    Such as making a whole table float that was to be looked up in integers.
    """
    for target, quantization in changes.items():
        for key, asked in _ASKED.items():
            if getattr(quantization, key) == asked.value and target.runtime not in _takers(asked):
                raise UnsupportedError(
                    f"runtime '{target.runtime}' {asked.lacks}",
                    hint=f"Export for {target} without {key}={asked.value}. {taken_by(key)}",
                )


def taken_by(key: str) -> str:
    """Which runtimes take a key that not all do, as a sentence; nothing for other keys."""
    asked = _ASKED.get(key)
    return f"{key}={asked.value} is taken by: {', '.join(_takers(asked))}." if asked else ""


def _takers(asked: _Asked) -> list[str]:
    listing = plugins.listing("runtimes").items()
    return [name for name, each in listing if asked.value in each.literals.get(asked.literal, ())]
