"""What a section of the page is made of: tables, figures, notes, and groups of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from markupsafe import Markup

from toolkit.page.words import exact

__all__ = [
    "Block", "Cell", "Column", "Details", "Figure", "Group", "Note", "Picture", "Section", "Table", "foldable",
    "number",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """Words, and the value a machine reads in their place; `data` names what the value is of."""

    text: str
    value: str = ""
    kind: Literal["", "pass", "fail", "name", "differs", "token"] = ""
    data: Mapping[str, str] = field(default_factory=dict)


def number(text: str, value: float | None, **data: str) -> Cell:
    """A cell whose number a machine reads exactly."""
    return Cell(text, exact(value), data=data)


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; numbers are aligned at the right."""

    title: str
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; the first cell of a row is its heading. `caption` says what it shows."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with a caption; `wide` charts scroll in their own box instead of shrinking."""

    kind: ClassVar[str] = "figure"
    chart: Markup
    caption: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A paragraph; `missing` marks one that says why something is not shown."""

    kind: ClassVar[str] = "note"
    text: str
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG as a `data:` address, pixels shown as squares; `caption` stands below it."""

    kind: ClassVar[str] = "picture"
    source: str
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class Details:
    """Blocks that open on request, without script."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Blocks under a heading of their own, or side by side where there is room."""

    kind: ClassVar[str] = "group"
    title: str
    blocks: tuple[Block, ...]
    beside: bool = False


Block = Table | Figure | Note | Picture | Details | Group


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page; `lead` says in a sentence how to read it."""

    ident: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


def foldable(groups: Sequence[Group]) -> tuple[Block, ...]:
    """One group as it is; of several, each opens on request: details of many bundles bury the page otherwise."""
    if len(groups) < 2:
        return tuple(groups)
    return tuple(Details(group.title, group.blocks) for group in groups)
