"""The distribution of the error: whether it is noise around zero, or a few values that are far off."""

from __future__ import annotations

from toolkit.compare.result import Comparison, Histogram
from toolkit.page.blocks import Block, Cell, Column, Details, Figure, Group, Note, Section, Table, number
from toolkit.page.charts.histogram import histogram
from toolkit.page.rerun import ErrorStatistics
from toolkit.page.sources import Sources, Subject, is_of
from toolkit.page.words import short

__all__ = ["error"]

_COLUMNS = (Column("from", True), Column("to", True), Column("values", True))


def error(sources: Sources) -> Section:
    """A histogram a bundle from its golden inputs, and one for each comparison of something else that has one."""
    lead = (
        "Candidate less reference, value by value, in the output's own unit. A long tail is worse than a wide middle."
    )
    here = [_here(index, subject) for index, subject in enumerate(sources.subjects)]
    measured = [subject for subject in sources.subjects if subject.rerun.error]
    others = [
        _compared(index, sources.title(each), each, each.error)
        for index, each in enumerate(sources.comparisons)
        if each.error is not None and not any(is_of(subject, each) for subject in measured)
    ]
    return Section("error", "Distribution of the error", lead, (Group("", (*here, *others), beside=True),))


def _here(index: int, subject: Subject) -> Group:
    found = subject.rerun.error
    if found is None:
        return Group(
            subject.label, (Note(f"Not measured: {subject.rerun.failure or subject.rerun.told}", missing=True),)
        )
    chart = histogram(f"error-{index}", found.histogram, f"error of {found.output}")
    return Group(subject.label, (Figure(chart, _statistics(found)), _figures(found.histogram)))


def _statistics(found: ErrorStatistics) -> str:
    return (
        f"{found.count} values of {found.output} on the golden inputs: mean {short(found.mean)}, "
        f"root mean square {short(found.rms)}, largest {short(found.peak)}."
    )


def _compared(index: int, title: str, comparison: Comparison, found: Histogram) -> Group:
    chart = histogram(f"compared-error-{index}", found, "error of the first output")
    blocks: tuple[Block, ...] = (
        Figure(chart, f"{sum(found.counts)} values on {comparison.inputs}."),
        _figures(found),
    )
    return Group(title, blocks)


def _figures(found: Histogram) -> Details:
    rows = tuple(
        (number(short(left), left), number(short(right), right), Cell(str(count), str(count)))
        for left, right, count in zip(found.edges, found.edges[1:], found.counts, strict=False)
    )
    return Details("Figures of this chart", (Table("Values in each interval", _COLUMNS, rows),))
