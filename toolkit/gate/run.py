"""The gate's run: every subject measured, judged against its budget and its baseline, and nothing said of time."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.errors import DriftError, ToolkitError, UsageError
from toolkit.gate.baseline import Baseline, read_baseline
from toolkit.gate.judge import Finding, compare, library_changes
from toolkit.gate.measure import Choices, Job, Measured, jobs_of, measure
from toolkit.gate.record import Record, stages_of
from toolkit.gate.result import CHECKS, Check, CheckName, Outcome, Result, Source
from toolkit.gate.tolerance import Tolerances, parse_tolerances
from toolkit.progress import Watch

__all__ = ["Against", "accepted", "against_file", "judge_job", "run"]

_NO_BASELINE = "no --baseline was given"


@dataclass(frozen=True, slots=True)
class Against:
    """What subjects are held to beside their gates: a baseline with its file, or neither; tolerances on top of its own.

    `accept`: a subject may differ from its baseline, since it is about to be recorded.
    """

    baseline: Baseline | None = None
    file: Path | None = None
    tolerances: Tolerances = field(default_factory=dict)
    accept: bool = False


def against_file(file: Path, tolerance: str = "", *, accept: bool = False) -> Against:
    """The baseline in that file, an empty one if it is to be written. Raises UsageError for what is not right."""
    tolerances = parse_tolerances(tolerance)
    if not file.exists() and not accept:
        raise UsageError(
            f"there is no baseline {file}",
            hint=f"Write it and commit it: toolkit gate RECIPE... --baseline {shlex.quote(str(file))} --update",
        )
    return Against(read_baseline(file) if file.exists() else Baseline(), file, tolerances, accept)


def run(paths: Sequence[Path], choices: Choices, against: Against, watch: Watch) -> Result:
    """Measure and judge all subjects. Raises UsageError before any work; later failures are in the answer."""
    jobs = jobs_of(paths, choices)
    outcomes = tuple(outcome for job in jobs for outcome in judge_job(job, choices, against, watch))
    known = against.baseline.subjects if against.baseline else {}
    ran = {outcome.subject for outcome in outcomes}
    return Result(outcomes, tuple(subject for subject in known if subject not in ran))


def judge_job(job: Job, choices: Choices, against: Against, watch: Watch) -> list[Outcome]:
    """The outcomes of one job's subjects, in order."""
    return [_judged(measured, choices, against) for measured in measure(job, choices, watch)]


def accepted(result: Result) -> dict[str, Record]:
    """What may be recorded: the subjects that ran to their end and keep their gate."""
    return {outcome.subject: outcome.record for outcome in result.outcomes if outcome.record is not None}


def _judged(measured: Measured, choices: Choices, against: Against) -> Outcome:
    stages = stages_of(measured.report) if measured.report else {}
    outcome = Outcome(
        measured.subject, measured.source, (), 0, stages, artefact=measured.record.artefact if measured.record else None
    )
    error = measured.error
    if error is not None and not isinstance(error, DriftError):
        said = f"{_stable(str(error), choices)}{_hint(error, choices)}"
        others = tuple(Check(name, "skipped", ("it did not run to its end",)) for name in CHECKS[1:])
        return replace(outcome, checks=(Check("stages", "error", (said,)), *others), exit_code=error.exit_code)
    broken = _broken(measured, choices)
    gate = Check("gate", "failed" if broken else "passed", broken)
    rest = _against_baseline(outcome, measured, against)
    checks = (Check("stages", "passed"), gate, *rest.checks)
    code = DriftError.exit_code if any(check.state == "failed" for check in checks) else 0
    record = None if broken else measured.record
    return replace(rest, checks=checks, exit_code=code, record=record)


def _broken(measured: Measured, choices: Choices) -> tuple[str, ...]:
    if measured.report is None:
        return () if measured.error is None else (_stable(str(measured.error), choices),)
    return tuple(f"{stage.stage}, {said}" for stage in measured.report.stages for said in stage.failures)


def _against_baseline(outcome: Outcome, measured: Measured, against: Against) -> Outcome:
    """The outcome with the checks after `gate`, what is better, and what may explain it."""
    if against.baseline is None:
        return replace(outcome, checks=_skipped(CHECKS[2:], _NO_BASELINE))
    before = against.baseline.subjects.get(outcome.subject)
    if before is None:
        unknown = Check("baseline", "passed") if against.accept else _unknown(outcome.subject, outcome.source, against)
        return replace(outcome, checks=(unknown, *_skipped(CHECKS[3:], "it is not in the baseline")))
    tolerances = {**against.baseline.tolerances, **against.tolerances}
    findings = compare(outcome.stages, outcome.artefact, before, tolerances)
    libraries = measured.record.libraries if measured.record else before.libraries
    changed = library_changes(libraries, before.libraries) if findings else ()
    return replace(
        outcome,
        checks=(Check("baseline", "passed"), *(_check(name, findings, outcome, against) for name in CHECKS[3:])),
        before=before,
        better=tuple(finding.sentence for finding in findings if not finding.worse),
        notes=(f"libraries since the baseline: {', '.join(changed)}",) if changed else (),
    )


def _check(name: CheckName, findings: Sequence[Finding], outcome: Outcome, against: Against) -> Check:
    if outcome.artefact is None and name in ("size", "operators", "engine"):
        return Check(name, "skipped", ("its gate was broken before it was whole",))
    worse = tuple(finding.sentence for finding in findings if finding.check == name and finding.worse)
    return Check(name, "failed" if worse and not against.accept else "passed", () if against.accept else worse)


def _skipped(names: Sequence[CheckName], why: str) -> tuple[Check, ...]:
    return tuple(Check(name, "skipped", (why,)) for name in names)


def _unknown(subject: str, source: Source, against: Against) -> Check:
    words = ["toolkit", "gate", str(source.path), "--baseline", str(against.file), "--update"]
    return Check("baseline", "failed", (f"{subject} is not in {against.file}; add it: {shlex.join(words)}",))


def _hint(error: ToolkitError, choices: Choices) -> str:
    return f". {_stable(error.hint, choices)}" if error.hint else ""


def _stable(text: str, choices: Choices) -> str:
    """The text without the names of temporary folders, which are other ones in every run."""
    plain = re.sub(r"/\.[^/\s]+\.[0-9a-f]{8}\.tmp\b", "", text)
    return plain.replace(str(choices.output), "OUTPUT") if choices.temporary else plain
