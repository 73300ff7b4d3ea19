"""Runs on this machine, some at a time."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from toolkit.bench_process import physical_cores
from toolkit.sweep.row import Row
from toolkit.sweep.run import Job
from toolkit.sweep.supervise import run_job

__all__ = ["default_jobs", "run_here"]


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
            for future in as_completed([pool.submit(run_job, job, halt.is_set) for job in jobs]):
                if row := future.result():
                    yield row
        finally:
            halt.set()
            pool.shutdown(cancel_futures=True)
