"""How often Python looks for unreachable cycles of objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collected_seldom"]

_ALLOCATIONS = 200_000


@contextmanager
def collected_seldom() -> Iterator[None]:
    """While this lasts, Python looks for cycles once in 200,000 new containers, and then as it did before.

    Importing torch and tracing a model allocate millions of objects that stay, and each look goes through them.
    A call of `gc.collect` collects as ever.
    """
    before = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
