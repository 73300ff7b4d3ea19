"""Which optimization profile of an engine serves given shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolkit.errors import UsageError

__all__ = ["Ranges", "choose_profile"]

Shape = tuple[int, ...]
Ranges = Mapping[str, tuple[Shape, Shape, Shape]]
"""Smallest, usual and largest shape of every input in one profile."""


def choose_profile(profiles: Sequence[Ranges], shapes: Mapping[str, Shape]) -> int:
    """The index of the profile that holds every shape; of several, the one that fixes most sizes.

    TensorRT has its single-query kernel only where the number of tokens is fixed at 1, so a wider profile that holds a
    single token too must not serve it. Raises UsageError where none fits.
    """
    fitting = [index for index, ranges in enumerate(profiles) if not _outside(ranges, shapes)]
    if fitting:
        return max(fitting, key=lambda index: (_fixed(profiles[index]), -index))
    # The profile that is missed by the fewest inputs says best what is wrong.
    nearest = min(profiles, key=lambda ranges: len(_outside(ranges, shapes)))
    name = _outside(nearest, shapes)[0]
    allowed = " or ".join(dict.fromkeys(f"{list(r[name][0])} to {list(r[name][2])}" for r in profiles))
    raise UsageError(
        f"the shape {list(shapes[name])} of '{name}' is outside what the engine was built for",
        hint=f"It takes {allowed}; for others, export again with --dim.",
    )


def _outside(ranges: Ranges, shapes: Mapping[str, Shape]) -> list[str]:
    return [name for name, shape in shapes.items() if not _holds(ranges[name], shape)]


def _holds(limits: tuple[Shape, Shape, Shape], shape: Shape) -> bool:
    least, _, most = limits
    return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))


def _fixed(ranges: Ranges) -> int:
    return sum(low == high for least, _, most in ranges.values() for low, high in zip(least, most, strict=True))
