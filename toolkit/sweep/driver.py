"""The sweep itself: what is done is skipped, what is refused is said, the rest runs and leaves a row each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from toolkit.recipe.file import write_recipe
from toolkit.sweep.refusals import refusals
from toolkit.sweep.row import Ledger, Row, write_table
from toolkit.sweep.run import Job, Run, Settings
from toolkit.sweep.supervise import blank_row

__all__ = ["Execute", "Outlook", "outlook", "sweep"]

Execute = Callable[[Sequence[Job]], Generator[Row]]
"""Does jobs and yields each one's row when it is there; closing it ends those at work."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is to come of a run: the row that it has, or is refused with; None where it is to run."""

    job: Job
    row: Row | None


def outlook(runs: Sequence[Run], settings: Settings, latest: Mapping[str, Row], *, retry: bool) -> tuple[Outlook, ...]:
    """What is to come of each run, given each one's last row by its key; `retry`: failed ones run again."""
    jobs = [Job(run, settings) for run in runs]
    kept = {job.run.key: row for job in jobs if (row := _kept(job, latest, retry=retry))}
    refused = refusals([job for job in jobs if job.run.key not in kept])
    return tuple(Outlook(job, kept.get(job.run.key) or _refused(job, refused)) for job in jobs)


def sweep(
    runs: Sequence[Run], settings: Settings, execute: Execute, tell: Callable[[Row], None], *, retry: bool = True
) -> tuple[Row, ...]:
    """Do what is to be done and answer a row for each run, in their order.

    `tell` hears of each row as soon as it is on disk. Interrupted at any point, by whatever means, the same call does
    what was not finished. Raises UsageError where another sweep is at work in the folder.
    """
    with Ledger.open(settings.output) as ledger:
        plans = outlook(runs, settings, ledger.latest, retry=retry)
        for each in plans:
            if each.row and each.row != ledger.latest.get(each.row.key):
                _keep(each.row, ledger, tell)
        jobs = [each.job for each in plans if each.row is None]
        for job in jobs:
            write_recipe(job.run.recipe, job.recipe_file)
        with closing(execute(jobs)) as rows:
            for row in rows:
                _keep(row, ledger, tell)
        done = tuple(_labelled(ledger.latest[run.key], run) for run in runs)
        write_table(done, settings.output)
    return done


def _keep(row: Row, ledger: Ledger, tell: Callable[[Row], None]) -> None:
    ledger.append(row)
    tell(row)


def _kept(job: Job, latest: Mapping[str, Row], *, retry: bool) -> Row | None:
    """A refusal is not kept: what is missing may have come since."""
    row = latest.get(job.run.key)
    if row is None or row.status == "refused" or (row.failed and retry):
        return None
    return None if row.status == "ok" and not (job.settings.output / row.run).is_dir() else row


def _refused(job: Job, reasons: Mapping[str, str]) -> Row | None:
    reason = reasons.get(job.run.key)
    return blank_row(job, "refused", reason) if reason else None


def _labelled(row: Row, run: Run) -> Row:
    """A recipe may have been renamed, or its model named another way, since the run."""
    return row.model_copy(update={"model": run.model, "target": run.target, "recipe": run.variant})
