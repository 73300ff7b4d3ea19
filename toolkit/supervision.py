"""Child processes under limits: watched for seconds and memory, and ended with all that they started."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import psutil

__all__ = ["Breach", "resident", "stop", "watch"]

_POLL_SECONDS = 0.2
_STOP_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Breach:
    """Why a process is not to go on: it `used` more seconds of wall clock or bytes of memory than the `limit`.

    Or it is no longer wanted, and nothing was used up.
    """

    what: Literal["seconds", "memory", "unwanted"]
    used: float = 0
    limit: float = 0

    @property
    def said(self) -> str:
        """What the process did, as a sentence without its subject; of one that is not wanted, that it was stopped."""
        if self.what == "seconds":
            return f"took longer than the limit of {self.limit:g} s and was stopped"
        if self.what == "memory":
            return (
                f"used {int(self.used) >> 20} MiB, more than the limit of {int(self.limit) >> 20} MiB, and was stopped"
            )
        return "was stopped"


def watch(
    process: subprocess.Popen[Any],
    *,
    seconds: float | None = None,
    memory: int | None = None,
    unwanted: Callable[[], bool] = lambda: False,
) -> Breach | None:
    """Wait for the process's end, or for the first breach of a limit, after which the caller stops it.

    `seconds` is wall clock from now on, `memory` bytes, compared in whole MiB, that the process
    and all below it hold; None is no limit.
    """
    start = time.monotonic()
    while process.poll() is None:
        if unwanted():
            return Breach("unwanted")
        if seconds is not None and (taken := time.monotonic() - start) > seconds:
            return Breach("seconds", taken, seconds)
        if memory is not None and (used := resident(process.pid)) >> 20 > memory >> 20:
            return Breach("memory", used, memory)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
    return None


def stop(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all below it, and wait for its end."""
    family = _family(process.pid) if process.poll() is None else []
    for one in family:
        with suppress(psutil.Error):
            one.kill()
    process.wait()
    psutil.wait_procs(family[1:], timeout=_STOP_SECONDS)


def resident(pid: int) -> int:
    """Bytes of memory that a process and all below it hold now."""
    sizes = []
    for process in _family(pid):
        with suppress(psutil.Error):
            sizes.append(int(process.memory_info().rss))
    return sum(sizes)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
