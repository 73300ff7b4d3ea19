"""The processes of a benchmark, seen from their parent: each contender in one of its own, told over a pipe to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

from toolkit import errors
from toolkit.errors import StageError, ToolkitError

__all__ = ["Contender", "Worker", "load_average", "physical_cores", "start_worker"]


@dataclass(frozen=True, slots=True)
class Contender:
    """Who runs: a bundle's engine, or (`torch`) the eager fp32 PyTorch model that it was made from."""

    label: str
    kind: Literal["bundle", "torch"]
    folder: Path


@dataclass(slots=True)
class Worker:
    """The parent's end of a contender's process."""

    contender: Contender
    errors: IO[str]
    process: subprocess.Popen[str]
    ready: Mapping[str, Any] = field(default_factory=dict)
    """What it said once it had loaded: `ran_on`, and more by the job."""

    @property
    def ran_on(self) -> str:
        """Library and device."""
        said: str = self.ready["ran_on"]
        return said

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        try:
            cast("IO[str]", self.process.stdin).write(f"{command}\n")
            cast("IO[str]", self.process.stdin).flush()
        except BrokenPipeError:
            raise self._died() from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer; an error in it is raised here."""
        line = cast("IO[str]", self.process.stdout).readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _same_error(self.contender.label, answer)
        return answer

    def _died(self) -> StageError:
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()[-1:]
        return StageError("bench", f"{self.contender.label} stopped with exit code {code}: {' '.join(said)}")


@contextmanager
def start_worker(
    contender: Contender, job: Mapping[str, Any], folder: Path, index: int, threads: int, *, pin: bool
) -> Iterator[Worker]:
    """Start the contender's process and wait until it has loaded; `job` is what it is to run.

    `folder` takes what it says on stderr. With `pin` it keeps to `threads` processors.
    """
    place = str(contender.folder.absolute())
    whole = {**job, "kind": contender.kind, "folder": place, "threads": threads, "pin": pin}
    with (
        (folder / f"errors-{index}.txt").open("w+", encoding="utf-8") as said,
        _process(whole, said) as process,
    ):
        started = Worker(contender, said, process)
        started.ready = started.answer()
        yield started


@contextmanager
def _process(job: Mapping[str, Any], said: IO[str]) -> Iterator[subprocess.Popen[str]]:
    # A session of its own: Ctrl-C reaches the parent alone, which then ends its children.
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit.bench_worker", json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            cast("IO[str]", pipe).close()


def _same_error(label: str, answer: Mapping[str, Any]) -> ToolkitError:
    message = f"{label}: {answer['message']}"
    if answer["error"] == "StageError":
        return StageError("bench", message, hint=answer["hint"])
    kind: type[ToolkitError] = getattr(errors, answer["error"])
    return kind(message, hint=answer["hint"])


def load_average() -> float | None:
    """How many processes wanted a processor in the last minute; None where that is not known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def physical_cores() -> int:
    """Physical cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))
