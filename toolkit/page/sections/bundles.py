"""Bundles side by side: a row a property, a column a bundle, and which rows differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolkit.console import byte_size
from toolkit.drift.report import Worst
from toolkit.drift.table import task_words
from toolkit.page.blocks import Cell, Column, Section, Table, number
from toolkit.page.sources import Sources, Subject
from toolkit.page.verdict import shipped_bytes
from toolkit.page.words import bounds, decibels, decimals, scientific

__all__ = ["bundles"]

_DIFFERS = "≠"


def bundles(sources: Sources) -> Section:
    """All bundles with what they are, weigh and drift."""
    subjects = sources.subjects
    several = len(subjects) > 1
    columns = (Column("property"), *(Column(subject.label) for subject in subjects))
    rows = tuple(_row(name, [of(subject) for subject in subjects]) for name, of in _PROPERTIES)
    lead = f"A row marked {_DIFFERS} is not the same in all of them." if several else "What this bundle is."
    title = "Bundles side by side" if several else "The bundle"
    return Section("bundles", title, lead, (Table("Properties of what ships", columns, rows),))


def _row(name: str, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    differs = len({(cell.value or cell.text) for cell in cells}) > 1
    head = Cell(f"{name} {_DIFFERS}" if differs else name, kind="differs" if differs else "name")
    return (head, *cells)


def _worst(subject: Subject) -> Worst:
    return subject.drift.stages[-1].worst()


def _model(subject: Subject) -> Cell:
    return Cell(f"{subject.bundle.manifest.model.name} ({subject.bundle.manifest.model.architecture})")


def _status(subject: Subject) -> Cell:
    engine = subject.bundle.manifest.engine
    return Cell(f"{engine.status} by {engine.builder}")


def _passed(subject: Subject) -> Cell:
    return Cell("passed" if subject.passed else "FAILED", kind="pass" if subject.passed else "fail")


def _shipped(subject: Subject) -> Cell:
    size = shipped_bytes(subject)
    return Cell(byte_size(size), str(size))


def _whole(subject: Subject) -> Cell:
    size = sum(entry.bytes for entry in subject.bundle.manifest.files.values())
    return Cell(byte_size(size), str(size))


def _quantized(subject: Subject) -> Cell:
    return Cell(f"{sum(subject.graph.quantized.values())} of {subject.graph.linears}")


def _calibration(subject: Subject) -> Cell:
    given = subject.bundle.manifest.calibration
    return Cell(f"{given.method}, {given.source}" if given else "none")


_PROPERTIES: tuple[tuple[str, Callable[[Subject], Cell]], ...] = (
    ("verdict", _passed),
    ("model", _model),
    ("target", lambda subject: Cell(subject.target)),
    ("engine", _status),
    ("drift measured on", lambda subject: Cell(_worst(subject).ran_on)),
    ("SQNR", lambda subject: number(decibels(_worst(subject).sqnr_db), _worst(subject).sqnr_db)),
    ("cosine", lambda subject: number(decimals(_worst(subject).cosine, 6), _worst(subject).cosine)),
    ("relative L2", lambda subject: number(scientific(_worst(subject).relative_l2), _worst(subject).relative_l2)),
    ("max abs", lambda subject: number(scientific(_worst(subject).max_abs), _worst(subject).max_abs)),
    ("task", lambda subject: Cell(task_words(subject.drift.stages[-1].task) or "no task metric")),
    ("gate", lambda subject: Cell(bounds(subject.bundle.manifest.check_gate))),
    ("what runs", _shipped),
    ("whole bundle", _whole),
    ("Linears quantized", _quantized),
    ("calibration", _calibration),
)
