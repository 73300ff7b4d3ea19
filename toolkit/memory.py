"""Giving memory back to the system, where what was freed would stay with the process."""

from __future__ import annotations

import ctypes
import gc

__all__ = ["give_back"]


def give_back() -> None:
    """Collect what is unreachable, and return what the C library keeps of freed memory; only glibc knows how.

    It keeps freed weights for later allocations: blocks of up to 32 MB stay in its heap once one such was freed
    (mallopt(3), M_MMAP_THRESHOLD), so a model that is gone would still be resident beside the next one.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        # Another C library: what it keeps is its own business.
        return
