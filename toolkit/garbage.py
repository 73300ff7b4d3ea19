"""How often Python looks for unreachable cycles of objects, and among which; a process that ends looks for none."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collected_seldom", "ends_at_once", "spared"]

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


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Where the block ends in SystemExit, as a command does, let the process end there and then.

    Threads are waited for, exit handlers run and both streams are flushed, but what goes with the process is not taken
    apart: that of torch's modules takes a fifth of a second, and a last look for cycles behind them a whole one. Not
    where what was written cannot be flushed, as into a pipe that is closed, nor where a text is the exit code.
    """
    try:
        yield
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, int) and _left_in_order():
            os._exit(code)
        raise


def _left_in_order() -> bool:
    """What an interpreter does first when it ends: threads are waited for, exit handlers run, streams are flushed."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):
        return False
    return True
