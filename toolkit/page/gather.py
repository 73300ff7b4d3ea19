"""Collecting what a page shows: bundles, comparisons that were given or are made now, searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.compare.result import read_comparison
from toolkit.page.layers import compare_subject
from toolkit.page.sources import Sources, is_of, open_subjects, open_tuning

__all__ = ["gather"]

_LEFT_OUT = "left out by --no-layers"


def gather(
    bundles: Sequence[Path], compared: Sequence[Path], tuned: Sequence[Path], *, layers: bool, picture: str = "0"
) -> Sources:
    """Read and measure everything. With `layers`, bundles that no given comparison is of are compared here, and their
    attention is drawn for the input `picture`.

    Raises UsageError for whatever is not what it should be, before anything runs where that can be told.
    """
    given = [read_comparison(path) for path in compared]
    tunings = tuple(map(open_tuning, tuned))
    subjects = open_subjects(bundles)
    without = [subject for subject in subjects if not any(is_of(subject, comparison) for comparison in given)]
    compared_here = [compare_subject(subject, picture) if layers else (None, _LEFT_OUT) for subject in without]
    told = [(subject.label, *answer) for subject, answer in zip(without, compared_here, strict=True)]
    return Sources(
        subjects,
        (*given, *(comparison for comparison, _ in compared_here if comparison)),
        tunings,
        unmeasured=tuple((label, why) for label, comparison, why in told if comparison is None),
        undrawn=tuple((label, why) for label, comparison, why in told if comparison and why),
    )
