"""A run from outside its process: whatever happens in there, an answer or a crash, becomes a row."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from toolkit.sweep.child import Ended, run_child
from toolkit.sweep.row import Row, Status
from toolkit.sweep.run import Job

__all__ = ["blank_row", "run_job"]


def run_job(job: Job, unwanted: Callable[[], bool] = lambda: False) -> Row | None:
    """Do the run in a process of its own and answer its row; None where it was stopped as `unwanted`.

    A run that gave no answer leaves nothing but its log.
    """
    start = time.monotonic()
    try:
        row = _supervise(job, unwanted)
    except OSError as error:
        row = blank_row(job, "failed", f"could not be run: {error}")
    return row and row.model_copy(update={"seconds": round(time.monotonic() - start, 1)})


def blank_row(job: Job, status: Status, error: str = "") -> Row:
    """A row that names the run and says what became of it, without any measurement."""
    run = job.run
    return Row(
        key=run.key, run=run.name, model=run.model, target=run.target, recipe=run.variant, status=status, error=error
    )


def _supervise(job: Job, unwanted: Callable[[], bool]) -> Row | None:
    settings = job.settings
    ended = run_child(
        "toolkit.sweep.worker",
        job,
        job.log,
        folder=job.folder,
        search=job.search,
        seconds=settings.seconds,
        memory=settings.memory,
        unwanted=unwanted,
    )
    if ended.lines:
        return Row.model_validate_json(ended.lines[0])
    shutil.rmtree(job.place, ignore_errors=True)
    if ended.breach and ended.breach.what == "unwanted":
        return None
    status, error = _verdict(ended)
    with job.log.open("a", encoding="utf-8") as log:
        log.write(f"{error}\n")
    return blank_row(job, status, error)


def _verdict(ended: Ended) -> tuple[Status, str]:
    if breach := ended.breach:
        return "timeout" if breach.what == "seconds" else "failed", breach.said
    if ended.code >= 0:
        return "failed", f"its process ended with code {ended.code} and no answer"
    name = str(-ended.code)
    with suppress(ValueError):
        name = signal.Signals(-ended.code).name
    hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
    return "failed", f"its process was ended by {name}{hint}"
