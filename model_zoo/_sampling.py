"""A seeded sample of a stream: uniform, without replacement, and the same on every machine."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from typing import TypeVar

__all__ = ["draw"]

Item = TypeVar("Item")


def draw(items: Iterable[Item], count: int, seed: int) -> tuple[list[Item], int]:
    """`count` of the items in the order of the stream, or all where there are no more; and how many there were.

    Each position has a rank, a hash of it and the seed, and the lowest ranks are kept (bottom-k sampling; Cohen and
    Kaplan, Summarizing Data using Bottom-k Sketches, 2007). So no more than `count` items are held, whatever the
    stream's length, and no library's random numbers have a say.
    """
    # The largest rank kept lies on top. Positions differ, so two items are never compared.
    kept: list[tuple[int, int, Item]] = []
    total = 0
    for position, item in enumerate(items):
        total += 1
        entry = (-_rank(seed, position), position, item)
        if len(kept) < count:
            heapq.heappush(kept, entry)
        elif entry[0] > kept[0][0]:
            heapq.heapreplace(kept, entry)
    return [item for _, _, item in sorted(kept, key=lambda entry: entry[1])], total


def _rank(seed: int, position: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest(), "big")
