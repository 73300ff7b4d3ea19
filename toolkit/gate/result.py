"""What the gate found: checks by subject, and the one exit code that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.gate.record import Artefact, Record, StageRecord

__all__ = ["CHECKS", "Check", "CheckName", "Outcome", "Result", "Source", "State", "worst_code"]

CheckName = Literal["stages", "gate", "baseline", "drift", "task", "size", "operators", "engine"]
CHECKS: tuple[CheckName, ...] = ("stages", "gate", "baseline", "drift", "task", "size", "operators", "engine")
"""Every subject has these, in this order, whatever it is made of, so that a CI server can follow each over time."""

State = Literal["passed", "failed", "error", "skipped"]

_WORST_FIRST = (5, 3, 4, 2, 6, 0)
"""What could not be measured says less than what was and failed: that comes last before success."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a subject comes from: the recipe or bundle as it was typed, the target, and the line to point at."""

    path: Path
    file: Path
    line: int
    target: str


@dataclass(frozen=True, slots=True)
class Check:
    """One check: `sentences` say what is wrong, or why it was not made."""

    name: CheckName
    state: State
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A subject, what was measured of it as far as it came, and its checks in the order of `CHECKS`.

    `record` is there if it ran and keeps its gate; `before` is the baseline's. `better` has a sentence for each
    improvement beyond its tolerance, `notes` what may explain a change.
    """

    subject: str
    source: Source
    checks: tuple[Check, ...]
    exit_code: int
    stages: dict[str, StageRecord]
    artefact: Artefact | None = None
    record: Record | None = None
    before: Record | None = None
    better: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return self.exit_code == 0

    @property
    def failures(self) -> tuple[str, ...]:
        """The sentences of all checks that failed or could not be made."""
        return tuple(said for check in self.checks if check.state in ("failed", "error") for said in check.sentences)

    def check(self, name: CheckName) -> Check:
        """The check of that name."""
        return next(check for check in self.checks if check.name == name)


@dataclass(frozen=True, slots=True)
class Result:
    """All subjects in the order in which they were given, and the baseline's subjects that were not run."""

    outcomes: tuple[Outcome, ...]
    not_run: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """The worst of the subjects'."""
        return worst_code([outcome.exit_code for outcome in self.outcomes])

    @property
    def passed(self) -> bool:
        """Whether every subject passed."""
        return self.exit_code == 0

    @property
    def verdict(self) -> str:
        """One line: how many passed, how many did not."""
        failed = [outcome.subject for outcome in self.outcomes if not outcome.passed]
        whole = len(self.outcomes)
        subjects = f"{whole} subject{'s' if whole != 1 else ''}"
        if not failed:
            return f"PASSED: {subjects} within budget"
        return f"FAILED: {len(failed)} of {subjects}: {', '.join(failed)}"


def worst_code(codes: Sequence[int]) -> int:
    """The first of 5, 3, 4, 2, 6, 0 that is among the codes; 0 for none."""
    return next((code for code in _WORST_FIRST if code in codes), 0)
