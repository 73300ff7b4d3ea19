"""What an evaluation set shares with the calibration set: judged on what it was fitted to, a model looks too good."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.types import Calibration, Evaluation

__all__ = ["Overlap", "overlap"]


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many of the `count` evaluation samples have content that is in the calibration set too."""

    duplicates: int
    count: int

    def __str__(self) -> str:
        return f"{self.duplicates} of {self.count}"


def overlap(calibration: Calibration | None, evaluation: Evaluation | None) -> Overlap | None:
    """Compare the two sets item by item, by the hashes of what each was made from; None where one has no items.

    Exact duplicates only: equal pixels, equal texts but for white space, equal rows. An image that was scaled or saved
    again as JPEG is another image.
    """
    if calibration is None or evaluation is None:
        return None
    seen, held_out = calibration.items(), evaluation.items()
    if not seen or not held_out:
        return None
    known = frozenset().union(*seen)
    return Overlap(sum(not known.isdisjoint(item) for item in held_out), len(held_out))
