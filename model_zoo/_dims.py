"""Ranges of dynamic dimensions: the family's defaults, what the user gave, and what the model takes."""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.errors import UsageError
from toolkit.types import Dim

__all__ = ["BATCH", "merge", "sequence", "within"]

BATCH = Dim(1, 8, 64)
LARGEST = 2**31 - 1


def sequence(longest: int) -> Dim:
    """The default range of a sequence for a model that takes up to `longest` tokens."""
    return Dim(1, min(128, longest), longest)


def within(size: int, dim: Dim) -> int:
    """The size nearest to the wanted one in the range."""
    return max(dim.min, min(size, dim.max))


def merge(defaults: Mapping[str, Dim], given: Mapping[str, Dim], limits: Mapping[str, int]) -> dict[str, Dim]:
    """The defaults with the given ranges in their place.

    Raises UsageError for a name the model does not have, a range that is not 1 <= min <= opt <= max,
    or one that passes the model's own limit.
    """
    for name, dim in given.items():
        _check(name, dim, defaults, limits)
    return {**defaults, **given}


def _check(name: str, dim: Dim, defaults: Mapping[str, Dim], limits: Mapping[str, int]) -> None:
    example = f"Type it as {next(iter(defaults), 'batch')}=1:8:64."
    if name not in defaults:
        raise UsageError(
            f"this model has no dimension '{name}'", hint=f"Its dimensions: {', '.join(defaults) or 'none'}."
        )
    if not 1 <= dim.min <= dim.opt <= dim.max:
        raise UsageError(
            f"dimension {name}={dim.min}:{dim.opt}:{dim.max} must rise: 1 <= min <= opt <= max", hint=example
        )
    if dim.max > LARGEST:
        raise UsageError(
            f"dimension {name}={dim.min}:{dim.opt}:{dim.max} is beyond what any runtime counts",
            hint=f"Give a maximum of {LARGEST} or less.",
        )
    if name in limits and dim.max > limits[name]:
        raise UsageError(
            f"dimension {name}={dim.min}:{dim.opt}:{dim.max}: the model takes at most {limits[name]}",
            hint=f"Give a maximum of {limits[name]} or less.",
        )
