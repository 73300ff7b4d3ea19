"""What each stage did, from the manifest's log."""

from __future__ import annotations

from toolkit.page.blocks import Block, Cell, Column, Details, Group, Section, Table, foldable
from toolkit.page.sources import Sources, Subject

__all__ = ["steps"]

_COLUMNS = (Column("stage"), Column("step"), Column("count", True), Column("reason"))
_LONG = 160


def steps(sources: Sources) -> Section:
    """A table a bundle; a reason that runs to pages opens on request."""
    lead = "Every rewrite with the number of nodes it changed. What a stage did not do is not there."
    return Section("steps", "Steps", lead, foldable([_group(each) for each in sources.subjects]))


def _group(subject: Subject) -> Group:
    log = subject.bundle.manifest.steps
    rows = tuple(
        (Cell(step.stage), Cell(step.what), Cell(str(step.count), str(step.count)), Cell(_brief(step.reason)))
        for step in log
    )
    blocks: list[Block] = [Table("Steps in order", _COLUMNS, rows)]
    for step in log:
        if len(step.reason) > _LONG:
            items = tuple((Cell(item),) for item in step.reason.split("; "))
            table = Table(step.what, (Column("reason"),), items)
            blocks.append(Details(f"{step.stage}: {step.what}, in full", (table,)))
    return Group(subject.label, tuple(blocks))


def _brief(reason: str) -> str:
    return reason if len(reason) <= _LONG else reason[:_LONG].rsplit(" ", 1)[0] + " …"
