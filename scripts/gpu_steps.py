"""Steps of a checklist: each runs a command, may need others, and says what came of it; none stops the rest."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Checklist", "Facts", "Judge", "Outcome", "Step", "said"]

Verdict = Literal["passed", "failed", "not run"]
Facts = Mapping[str, Any]
Judge = Callable[[str], tuple[str, Facts]]
"""Reads what a command printed; answers why it is not good enough, or nothing, and what to keep of it."""

UNSUPPORTED = (3, 4)
"""Exit codes of the toolkit that say it cannot be done here: a library is missing, or it is not supported."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command, what must have passed before it, and how its output is judged.

    A command that hangs on what earlier steps left is a function. `toolkit` says that the command's exit codes are
    the toolkit's, of which some mean that it cannot be done here.
    """

    name: str
    command: Sequence[str] | Callable[[], Sequence[str]]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    judge: Judge | None = None
    toolkit: bool = False


@dataclass(slots=True)
class Outcome:
    """What came of a step. `log` is relative to the report's folder."""

    name: str
    verdict: Verdict
    seconds: float = 0.0
    reason: str = ""
    command: str = ""
    log: str = ""
    facts: Facts = field(default_factory=dict)


class Checklist:
    """Runs steps one after the other, each with a log, and keeps what came of them.

    `only` are beginnings of step names; others are not run, but for those that begin as one of `always`,
    which everything needs.
    `seconds` is what one step may take. `written` is called after each step, so that a report is there at any time.
    """

    def __init__(
        self, folder: Path, *, only: Sequence[str] = (), always: Sequence[str] = (), seconds: float = 3600.0,
        written: Callable[[Checklist], None] = lambda checklist: None,
    ) -> None:  # fmt: skip
        self.folder, self.outcomes = folder, list[Outcome]()
        self._only, self._always, self._seconds, self._written = tuple(only), tuple(always), seconds, written
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    @property
    def exit_code(self) -> int:
        """0 where all that ran passed, and something did; else 1."""
        verdicts = {outcome.verdict for outcome in self.outcomes}
        return 0 if "passed" in verdicts and "failed" not in verdicts else 1

    def passed(self, name: str) -> bool:
        """Whether the step of that name ran and passed."""
        return any(outcome.name == name and outcome.verdict == "passed" for outcome in self.outcomes)

    def run(self, step: Step, *, wanted: bool | None = None) -> Outcome:
        """Run a step unless something that it needs did not pass."""
        missing = [name for name in step.needs if not self.passed(name)]
        if not (self._wanted(step.name) if wanted is None else wanted):
            return self.note(Outcome(step.name, "not run", reason="not among --only"))
        if missing:
            return self.note(Outcome(step.name, "not run", reason=f"{missing[0]} did not pass"))
        print(f"{step.name} …", flush=True)
        return self.note(self._executed(step))

    def run_all(self, steps: Sequence[Step]) -> None:
        """Run those that are wanted and those that they need, in order."""
        wanted = {step.name for step in steps if self._wanted(step.name)}
        for step in reversed(steps):
            wanted |= set(step.needs) if step.name in wanted else set()
        for step in steps:
            self.run(step, wanted=step.name in wanted)

    def note(self, outcome: Outcome) -> Outcome:
        """Keep an outcome and write the report."""
        self.outcomes.append(outcome)
        print(f"{outcome.name}: {outcome.verdict}{f' ({outcome.reason})' if outcome.reason else ''}", flush=True)
        self._written(self)
        return outcome

    def as_json(self) -> dict[str, Any]:
        """All outcomes and the exit code."""
        return {"exit_code": self.exit_code, "steps": [asdict(outcome) for outcome in self.outcomes]}

    def _wanted(self, name: str) -> bool:
        return not self._only or name.startswith((*self._always, *self._only))

    def _executed(self, step: Step) -> Outcome:
        log = self.folder / "logs" / f"{len(self.outcomes):02d}-{step.name.replace(' ', '-').replace('/', '-')}.txt"
        start, command = time.monotonic(), step.command() if callable(step.command) else step.command
        code, output = _run(command, step.environment, log, self._seconds)
        outcome = Outcome(
            step.name, "passed", round(time.monotonic() - start, 1),
            command=shlex.join(command), log=str(log.relative_to(self.folder)),
        )  # fmt: skip
        if code is None:
            outcome.verdict, outcome.reason = "failed", f"longer than {self._seconds:g} s"
        elif code != 0:
            outcome.verdict = "not run" if step.toolkit and code in UNSUPPORTED else "failed"
            outcome.reason = f"exit code {code}: {said(log)}"
        elif step.judge is not None:
            _judge(outcome, step.judge, output)
        return outcome


def said(log: Path) -> str:
    """The line of a log that says most of a failure: the last that begins with `error`, else the last."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error")]
    return (told or lines or ["it printed nothing"])[-1][:300]


def _judge(outcome: Outcome, judge: Judge, output: str) -> None:
    try:
        reason, outcome.facts = judge(output)
    except Exception as error:  # whatever is wrong with the output is a failure of this step alone
        reason = f"its output is not as expected: {type(error).__name__}: {error}"
    if reason:
        outcome.verdict, outcome.reason = "failed", reason


def _run(command: Sequence[str], added: Mapping[str, str], log: Path, seconds: float) -> tuple[int | None, str]:
    """The exit code, None where it took too long, and the standard output; the log has both streams."""
    out = log.with_suffix(".out")
    try:
        with log.open("w", encoding="utf-8") as stream, out.open("w", encoding="utf-8") as printed:
            code = _waited(command, {**os.environ, **added}, printed, stream, seconds)
        output = out.read_text(encoding="utf-8", errors="replace")
        with log.open("a", encoding="utf-8") as stream:
            stream.write(output)
        return code, output
    finally:
        out.unlink(missing_ok=True)


def _waited(
    command: Sequence[str], environment: Mapping[str, str], printed: Any, errors: Any, seconds: float
) -> int | None:
    try:
        process = subprocess.Popen(
            list(command), stdout=printed, stderr=errors, env=dict(environment), start_new_session=True
        )
    except OSError as error:
        errors.write(f"error: {error}\n")
        return 127
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    """End the step's whole process group, which is its own: children must not run on into the next step."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
