"""How often Python looks for unreachable cycles of objects, and among which."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collected_seldom", "end_at_once", "spared"]

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
        gc.unfreeze()


@contextmanager
def spared() -> Iterator[None]:
    """For imports: no look while this lasts, and until `collected_seldom` ends none goes through what is there now."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def end_at_once() -> None:
    """Let the process end without a last look through its objects: behind torch's modules it takes a second."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
