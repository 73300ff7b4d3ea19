"""What a rule of the preflight answers."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Finding"]


class Finding(NamedTuple):
    """What is wrong and the rewrite that fixes it; not fatal where the engine is right and only slow."""

    problem: str
    fix: str
    fatal: bool = True
