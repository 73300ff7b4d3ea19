"""What the command line shows while the line runs: one row a stage, with a spinner on the stage at work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Row", "Rows", "Silent", "Watch"]


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


class Rows:
    """A watch that prints a row a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, target: str = "") -> Iterator[Row]:
        """Show a spinner, then how long it took and what the stage had to say."""
        row, start = Row(), time.monotonic()
        with self._console.status(f"{name} {target} …"):
            yield row
        self._console.print(f"{name:<10}{target:<14}{time.monotonic() - start:6.1f} s  {row.said}", soft_wrap=True)
