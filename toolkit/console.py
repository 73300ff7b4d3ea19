"""What the user sees: results on stdout, progress on stderr, plain text wherever that is not a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from toolkit.cli import json_requested

__all__ = ["byte_size", "emit_json", "jsonable", "make_console", "print_table", "progress", "results"]


def make_console(file: IO[str]) -> Console:
    """A console on that stream; square brackets are text, since shapes are full of them. Honours NO_COLOR."""
    return Console(file=file, markup=False, emoji=False, highlight=False, soft_wrap=not file.isatty())


def results() -> Console:
    """Where answers go: stdout as it is now."""
    return make_console(sys.stdout)


def progress() -> Console:
    """Where the running commentary goes: stderr as it is now."""
    return make_console(sys.stderr)


def print_table(rows: Iterable[Iterable[object]], *columns: str, title: str = "") -> None:
    """Print rows of anything on stdout; None is an empty cell, a column that starts with `>` is right-aligned.

    Where stdout is no terminal, lines are as long as they need to be: they are for grep, not for a width.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    out = results()
    if out.is_terminal:
        out.print(_rich_table(cells, columns, title))
    else:
        click.echo("\n".join(_plain_lines(cells, columns, title)) + "\n")


def emit_json(value: object) -> None:
    """Print the one JSON document of a command on stdout."""
    click.echo(json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False))
    json_requested(answered=True)


def jsonable(value: Any) -> Any:
    """Dataclasses, pydantic models, paths and numpy values as JSON; an infinite number as its name."""
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value) if isinstance(value, Path) else value


def byte_size(count: int) -> str:
    """Bytes in decimal units, as `86.3 MB`."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"


def _rich_table(cells: Sequence[Sequence[str]], columns: Sequence[str], title: str) -> Table:
    built = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        side: Any = "right" if column.startswith(">") else "left"
        built.add_column(column.removeprefix(">"), justify=side, overflow="fold")
    for row in cells:
        built.add_row(*row)
    return built


def _plain_lines(cells: Sequence[Sequence[str]], columns: Sequence[str], title: str) -> Iterable[str]:
    rows = [[column.removeprefix(">") for column in columns], *cells]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    if title:
        yield title
    for row in rows:
        yield "  ".join(map(_aligned, row, widths, columns)).rstrip()


def _aligned(cell: str, width: int, column: str) -> str:
    return cell.rjust(width) if column.startswith(">") else cell.ljust(width)
