"""The seeded sample: which items, in which order, and what it costs to hold."""

from __future__ import annotations

import weakref
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from model_zoo._sampling import draw


@given(st.integers(0, 60), st.integers(1, 40), st.integers(0, 2**40))
def test_a_sample_keeps_the_order_and_takes_what_there_is(total: int, count: int, seed: int) -> None:
    drawn, seen = draw(iter(range(total)), count, seed)
    assert seen == total
    assert len(drawn) == min(count, total)
    assert drawn == sorted(set(drawn))
    assert draw(range(total), count, seed)[0] == drawn


def test_the_sample_of_a_seed_never_changes() -> None:
    """These are what BLAKE2b says; another machine or another numpy draws the same."""
    assert draw(range(1000), 5, 0)[0] == [405, 856, 897, 904, 913]
    assert draw(range(1000), 5, 1)[0] == [85, 835, 840, 949, 983]
    assert draw(range(10**5), 3, 0)[0] != list(range(3))


def test_every_item_is_as_likely() -> None:
    seen = Counter(item for seed in range(2000) for item in draw(range(20), 5, seed)[0])
    # 2000 draws of 5 in 20: each item 500 times, with a standard deviation of 19.
    assert all(abs(seen[item] - 500) < 100 for item in range(20))


class Item:
    pass


def test_no_more_than_the_sample_is_held() -> None:
    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    most = 0

    def stream():
        nonlocal most
        for _ in range(500):
            item = Item()
            alive.add(item)
            most = max(most, len(alive))
            yield item

    drawn, _ = draw(stream(), 10, 0)
    assert len(drawn) == 10
    # The sample, and the few items that are on their way.
    assert most <= 14
