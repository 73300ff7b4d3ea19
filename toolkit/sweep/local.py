"""Runs on this machine, some at a time."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from toolkit.bench_process import physical_cores
from toolkit.sweep.row import Row
from toolkit.sweep.run import Job
from toolkit.sweep.supervise import run_job

__all__ = ["default_jobs", "run_here"]

T = TypeVar("T")

_POLL_SECONDS = 0.2


def default_jobs() -> int:
    """One run for every two cores: each uses as many as it gets, and is seldom busy on all for long."""
    return max(1, physical_cores() // 2)


def run_here(jobs: Sequence[Job], count: int) -> Generator[Row]:
    """Do the runs, `count` at a time, and yield each row when it is there.

    Closing the iterator, or Ctrl-C, ends the runs at work; those have no row then.
    """
    halt = threading.Event()
    with ThreadPoolExecutor(count) as pool:
        try:
            for future in _completed([pool.submit(run_job, job, halt.is_set) for job in jobs]):
                if row := future.result():
                    yield row
        finally:
            halt.set()
            pool.shutdown(cancel_futures=True)


def _completed(futures: Iterable[Future[T]]) -> Iterator[Future[T]]:
    """Each when it is done. In short waits: one that a signal comes before, instead of in, would not end by it."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
        yield from done
