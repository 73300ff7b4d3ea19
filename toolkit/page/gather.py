"""Collecting what a page shows: bundles, comparisons that were given or are made now, searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.compare.result import Comparison, read_comparison
from toolkit.page.layers import compare_subject
from toolkit.page.sources import Sources, Subject, is_of, open_subjects, open_tuning

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
    made, unmeasured = _made(without, picture) if layers else ([], [(subject.label, _LEFT_OUT) for subject in without])
    return Sources(subjects, (*given, *made), tunings, tuple(unmeasured))


def _made(subjects: Sequence[Subject], picture: str) -> tuple[list[Comparison], list[tuple[str, str]]]:
    made: list[Comparison] = []
    unmeasured: list[tuple[str, str]] = []
    for subject in subjects:
        answer = compare_subject(subject, picture)
        if isinstance(answer, Comparison):
            made.append(answer)
        else:
            unmeasured.append((subject.label, answer))
    return made, unmeasured
