"""What the command line shows while the line runs: one row a stage, with a spinner on the stage at work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console

__all__ = ["Row", "Silent", "Watch", "progress"]


@dataclass
class Row:
    """What a stage has to say once it is done; the stage fills it in while it works."""

    said: str = ""


class Watch(Protocol):
    """Is told when a stage begins and ends."""

    def stage(self, name: str, target: str = "") -> AbstractContextManager[Row]:
        """A context that lasts as long as the stage and yields the row it fills in."""
        ...


class Silent:
    """A watch that shows nothing: for programs, and for `--json`."""

    @contextmanager
    def stage(self, name: str, target: str = "") -> Iterator[Row]:
        """Yield a row that nobody reads."""
        yield Row()


class _Rows:
    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, target: str = "") -> Iterator[Row]:
        row, start = Row(), time.monotonic()
        with self._console.status(f"{name} {target} …"):
            yield row
        self._console.print(
            f"[green]✓[/] {name:<10} [bold]{target:<18}[/] {time.monotonic() - start:6.1f} s  {row.said}",
            highlight=False,
        )


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Watch]:
    """A watch that writes to standard error, so that standard output stays for results."""
    yield Silent() if quiet else _Rows(Console(stderr=True))
