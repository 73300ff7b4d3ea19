"""Rows for people, and what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.console import byte_size
from toolkit.errors import DriftError, StageError, UnsupportedError
from toolkit.sweep.driver import Outlook
from toolkit.sweep.row import Row

__all__ = ["COLUMNS", "OUTLOOK", "cells", "counts", "outlook_cells", "raise_if_not_all_passed", "sentence"]

COLUMNS = ("model", "target", "recipe", "status", ">SQNR dB", ">cosine", "task", ">size", ">seconds", "error")
OUTLOOK = ("run", "model", "target", "recipe", "state", "reason")
_SHORT = 100


def cells(rows: Iterable[Row]) -> list[tuple[str | None, ...]]:
    """One line a row, a cell for each of COLUMNS."""
    return [
        (
            row.model,
            row.target,
            row.recipe,
            row.status,
            None if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
            None if row.cosine is None else f"{row.cosine:.6f}",
            row.task,
            None if row.bytes is None else byte_size(row.bytes),
            None if row.seconds is None else f"{row.seconds:.1f}",
            row.error if len(row.error) <= _SHORT else f"{row.error[: _SHORT - 1]}…",
        )
        for row in rows
    ]


def outlook_cells(plans: Iterable[Outlook]) -> list[tuple[str, ...]]:
    """One line a run, a cell for each of OUTLOOK."""
    return [
        (run.name, run.model, run.target, run.variant, _state(each.row), each.row.error if each.row else "")
        for each in plans
        for run in (each.job.run,)
    ]


def _state(row: Row | None) -> str:
    """`to run`, `refused`, or the status that the run has already."""
    if row is None:
        return "to run"
    return row.status if row.status == "refused" else f"done: {row.status}"


def sentence(row: Row) -> str:
    """A line that says what became of a run just now."""
    took = "" if row.seconds is None else f" in {row.seconds:.1f} s"
    return f"{row.status:<8} {row.run}{took}{f': {row.error}' if row.error else ''}"


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows there are of each status that occurs."""
    return dict(Counter(row.status for row in rows))


def raise_if_not_all_passed(rows: Sequence[Row], folder: Path) -> None:
    """Raise the worst of what happened.

    StageError (exit code 5) where a run failed or ran out of time, else DriftError (6) where one drifted, else
    UnsupportedError (4) where all were refused. Refused ones among others are no failure.
    """
    failed = [row for row in rows if row.failed]
    drifted = [row for row in rows if row.status == "drifted"]
    if failed:
        raise StageError(
            "sweep",
            f"{len(failed)} of {len(rows)} runs failed: {', '.join(row.run for row in failed)}",
            hint=f"The whole errors are in the logs, as {folder / failed[0].run}.log; the same command tries again.",
        )
    if drifted:
        raise DriftError(
            f"{len(drifted)} of {len(rows)} runs moved past their gates: {', '.join(row.run for row in drifted)}",
            hint=f"The log says which stage and output, as {folder / drifted[0].run}.log.",
        )
    if all(row.status == "refused" for row in rows):
        raise UnsupportedError("every run is refused", hint=rows[0].error)
