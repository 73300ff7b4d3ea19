"""The smallest subset for which a test holds, by few tests: galloping over an order, then dropping one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["smallest"]

Holds = Callable[[Sequence[str]], bool]
"""Whether the gate holds with these excluded; expected to remember what it was asked."""


def smallest(order: Sequence[str], holds: Holds) -> list[str]:
    """A part of `order`, for all of which the test holds, that holds and none of whose members can be dropped.

    Each round finds the shortest prefix that holds beside what was found, by doubling and halving; its last member is
    needed. With k culprits among n that is k · 2 log2 n tests at most, and about two a culprit where the order has them
    in front. Where more exclusions never harm, no smaller part of what was found holds either; what noise added is
    dropped in the end.
    """
    found: list[str] = []
    rest = list(order)
    while not holds(found):
        length = _shortest(rest, found, holds)
        found.append(rest[length - 1])
        rest = rest[: length - 1]
    return _without_spare(found, holds)


def _shortest(rest: Sequence[str], found: Sequence[str], holds: Holds) -> int:
    """The least p for which `found` with the first p of the rest holds, given that it does with all of them."""
    low, high = 0, min(1, len(rest))
    while high < len(rest) and not holds([*found, *rest[:high]]):
        low, high = high, min(2 * high, len(rest))
    while high - low > 1:
        middle = (low + high) // 2
        if holds([*found, *rest[:middle]]):
            high = middle
        else:
            low = middle
    return high


def _without_spare(found: list[str], holds: Holds) -> list[str]:
    """Drop one member after the other that is not needed, until none is left that could be."""
    for member in found:
        fewer = [each for each in found if each != member]
        if holds(fewer):
            return _without_spare(fewer, holds)
    return found
