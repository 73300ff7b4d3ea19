"""Rows: what became of a run, and the file that keeps them, to which lines are only ever added."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from toolkit.atomic import write_whole
from toolkit.document import Frozen
from toolkit.drift.report import Metric
from toolkit.errors import UsageError

__all__ = ["ROWS", "TABLE", "Ledger", "Row", "Status", "in_short", "read_rows", "write_table"]

ROWS = "rows.jsonl"
TABLE = "sweep.csv"
_SHORT = 300
Status = Literal["ok", "drifted", "failed", "refused", "timeout"]


class Row(Frozen):
    """What became of a run. Metrics are those of the engine, or of the stage that drifted.

    `run` names its folder and log beside the file of rows. `bytes` is the bundle's size; `seconds` is wall clock;
    `error` is what went wrong in a sentence.
    """

    schema_version: Literal[1] = 1
    key: str
    run: str
    model: str
    target: str
    recipe: str
    status: Status
    sqnr_db: Metric | None = None
    cosine: Metric | None = None
    task: str = ""
    bytes: int | None = None
    seconds: float | None = None
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether another try may end otherwise."""
        return self.status in {"failed", "timeout"}


@dataclass(slots=True)
class Ledger:
    """The file of rows, held by one sweep at a time; `latest` has each run's last row by its key."""

    handle: int
    latest: dict[str, Row] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Self]:
        """Take the folder's rows. Raises UsageError where another sweep holds them or they cannot be read."""
        path = folder / ROWS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UsageError(f"cannot write in {folder}: {error.strerror}", hint="Choose another --output.") from error
        try:
            _lock(handle, folder)
            latest = read_rows(folder)
            _drop_torn_line(handle, path)
            yield cls(handle, latest)
        finally:
            os.close(handle)

    def append(self, row: Row) -> None:
        """Add the row; it is on disk when this returns."""
        line = (row.model_dump_json() + "\n").encode()
        while line:
            line = line[os.write(self.handle, line) :]
        os.fsync(self.handle)
        self.latest[row.key] = row


def read_rows(folder: Path) -> dict[str, Row]:
    """Each run's last row by its key; none where there is no file. A last line that was cut short does not count.

    Raises UsageError for a line that is no row.
    """
    path = folder / ROWS
    if not path.exists():
        return {}
    whole = path.read_bytes().split(b"\n")[:-1]
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(whole, 1)]
    return {row.key: row for row in rows}


def in_short(text: str) -> str:
    """An error's text in one line of 300 characters at most, as a row has it."""
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 1]}…"


def write_table(rows: Iterable[Row], folder: Path) -> Path:
    """Write the rows as CSV, whole or not at all; answers where."""
    path, stream = folder / TABLE, io.StringIO()
    writer = csv.DictWriter(
        stream, [name for name in Row.model_fields if name != "schema_version"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(row.model_dump(mode="json", exclude={"schema_version"}) for row in rows)
    write_whole(path, stream.getvalue())
    return path


def _row(line: bytes, where: str) -> Row:
    try:
        return Row.model_validate_json(line)
    except ValidationError as error:
        raise UsageError(
            f"{where} is no row of a sweep: {error.errors()[0]['msg']}", hint="Choose another --output."
        ) from error


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"another sweep is writing {folder}", hint="Wait for it to end, or choose another --output."
        ) from error


def _drop_torn_line(handle: int, path: Path) -> None:
    """A writer killed within a line leaves a part of it, to which nothing may be added."""
    content = path.read_bytes()
    os.ftruncate(handle, content.rfind(b"\n") + 1)
