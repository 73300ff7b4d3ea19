"""A process for one task: started with limits, ended with all that it started, and never outliving who started it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.supervision import Breach, stop, watch

__all__ = ["Ended", "perform", "run_child"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code (minus a signal's number), the limit it broke, the whole lines it answered."""

    code: int
    breach: Breach | None
    lines: tuple[str, ...]


def run_child(
    module: str,
    task: Any,
    log: Path | None = None,
    *,
    folder: Path | None = None,
    search: Sequence[str] = (),
    seconds: float | None = None,
    memory: int | None = None,
    unwanted: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run `python -m module` on the task and wait for its end; the module's main calls `perform`.

    `log` takes what it prints. `folder` is where it works, `search` what it imports from, `seconds` and `memory`
    (bytes) are its limits; it is stopped as soon as it is `unwanted`. Its temporary files go with it.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-sweep-", ignore_cleanup_errors=True) as scratch:
        given, answer = Path(scratch) / "task", Path(scratch) / "answer"
        given.write_bytes(pickle.dumps(task))
        answer.touch()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search), "TMPDIR": scratch}
        with _output(log) as said, _lifeline() as end:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(end), str(given), str(answer)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                # Ctrl-C is for the parent, which then ends its children.
                start_new_session=True,
                pass_fds=(end,),
                cwd=folder,
                env=environment,
            )
            try:
                breach = watch(process, seconds=seconds, memory=memory, unwanted=unwanted)
            finally:
                _end(process)
        lines = answer.read_text(encoding="utf-8").split("\n")[:-1]
        return Ended(process.returncode, breach, tuple(lines))


def perform(work: Callable[[Any], Iterator[str]]) -> None:
    """What the main of a child does: hand each line that `work` yields for the task to the parent.

    Should the parent die, this process and all that it started die at once.
    """
    end, given, answer = sys.argv[1:]
    threading.Thread(target=_die_with_parent, args=(int(end),), daemon=True).start()
    task = pickle.loads(Path(given).read_bytes())
    with Path(answer).open("w", encoding="utf-8") as lines:
        for line in work(task):
            lines.write(f"{line}\n")
            lines.flush()


@contextmanager
def _output(log: Path | None) -> Iterator[Any]:
    if log is None:
        yield subprocess.DEVNULL
        return
    with log.open("wb") as stream:
        yield stream


@contextmanager
def _lifeline() -> Iterator[int]:
    """The reading end of a pipe whose writing end closes when this process ends, however it ends."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(writing)
        os.close(reading)


def _die_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """A process that crashed may have left some behind that only its group still names."""
    stop(process)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
