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
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(_ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not frozen:  # else it is an application that froze its own
            gc.unfreeze()


@contextmanager
def spared() -> Iterator[None]:
    """For imports: no look while this lasts, and until `collected_seldom` ends none goes through what is there now."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        gc.freeze()


def end_at_once() -> None:
    """Let the process end without a last look through its objects: behind torch's modules it takes a second."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
