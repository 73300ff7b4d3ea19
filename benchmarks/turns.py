"""Both ends of a contender's process: lines of JSON in, lines of JSON out, stopped while others have their turn.

Standard library only, since contenders run in environments of their own. Needs Linux (signals, affinity).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["REST_SECONDS", "Answer", "Worker", "pin", "serve", "worker"]

REST_SECONDS = 0.06
_PR_SET_PDEATHSIG = 1
Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""What a contender does with one request."""


class Worker:
    """The asking end. `absent` is the reason from when the contender could not load, answer, or died."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take over a process that was just started, and wait until it has loaded."""
        self._process, self.absent = process, ""
        self._receive()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer; None, with the reason in `absent`, when there is none."""
        if self._process.stdin is None or self.absent:
            return None
        self._process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._receive()

    def _receive(self) -> dict[str, Any] | None:
        line = self._process.stdout.readline() if self._process.stdout else ""
        answer: dict[str, Any] = json.loads(line) if line else {"absent": f"its process ended: {self._process.wait()}"}
        if reason := answer.get("absent"):
            self.absent = reason
            return None
        self._process.send_signal(signal.SIGSTOP)
        return answer


@contextmanager
def worker(
    command: Sequence[str], threads: int, said: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Worker]:
    """Start the contender's process, and end it with the block; `said` takes what it says on stderr."""
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"} | dict(environment or {})
    with (said or Path(os.devnull)).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log if said else None,
            env=variables,
            text=True,
        )
        try:
            yield Worker(process)
        finally:
            process.kill()
            process.wait()


def serve(load: Callable[[], Answer]) -> None:
    """The answering end: load, say so, then answer requests until standard input ends; an error is an answer too."""
    # A stopped process would outlive a parent that was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print to file descriptor 1 as they like, so the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        answer = load()
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=answers)
    except Exception as error:
        print(json.dumps({"absent": f"{type(error).__name__}: {error}"}), file=answers)
        raise


def pin(threads: int) -> None:
    """Keep this process to the first processors that it may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
