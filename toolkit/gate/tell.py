"""Telling a result: text or JSON, JUnit, annotations, the step's summary, and the baseline that is recorded."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from toolkit import console
from toolkit.atomic import write_whole
from toolkit.errors import UsageError
from toolkit.gate.baseline import changes, merged, write_baseline
from toolkit.gate.github import markdown, workflow_commands
from toolkit.gate.junit import junit_xml
from toolkit.gate.result import Outcome, Result
from toolkit.gate.rows import HEADERS, NUMBERS, remarks, rows
from toolkit.gate.run import Against, accepted

__all__ = ["Reports", "tell"]


@dataclass(frozen=True, slots=True)
class Reports:
    """Which reports are wanted beside the answer on stdout."""

    junit: Path | None = None
    summary: Path | None = None
    github: bool = False
    as_json: bool = False


def tell(result: Result, against: Against, reports: Reports) -> int:
    """Write what is wanted, record the baseline if it is to be, and answer the exit code."""
    recorded = _record(result, against)
    if reports.as_json:
        console.emit_json(_document(result, recorded))
    else:
        _print(result, against, recorded)
    if reports.junit:
        write_whole(reports.junit, junit_xml(result))
    if reports.summary:
        write_whole(reports.summary, markdown(result))
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        _append(Path(step), markdown(result))
    if reports.github or os.environ.get("GITHUB_ACTIONS"):
        for line in workflow_commands(result):
            click.echo(line, err=reports.as_json)
    return result.exit_code


def _record(result: Result, against: Against) -> list[str] | None:
    """Write the baseline with what may be recorded, and say what changed; None where it is only read."""
    if not against.accept or against.baseline is None or against.file is None:
        return None
    after = merged(against.baseline, accepted(result), against.tolerances)
    if after != against.baseline or not against.file.exists():
        write_baseline(after, against.file)
    return changes(against.baseline, after)


def _print(result: Result, against: Against, recorded: list[str] | None) -> None:
    columns = [f">{name}" if index in NUMBERS else name for index, name in enumerate(HEADERS)]
    console.print_table(rows(result), *columns)
    failures, better, warnings = remarks(result)
    for kind, sentences in (("FAIL", failures), ("better", better), ("warning", warnings)):
        for said in sentences:
            click.echo(f"{kind}: {said}")
    if better and recorded is None:
        click.echo("The baseline can be tightened: run the same command with --update.")
    if recorded is not None:
        for line in recorded:
            click.echo(f"recorded: {line}")
        for outcome in result.outcomes:
            if outcome.record is None:
                click.echo(f"not recorded: {outcome.subject}, since it fails")
        click.echo(f"{against.file}: {len(recorded) or 'no'} change{'' if len(recorded) == 1 else 's'}")
    click.echo(result.verdict)


def _document(result: Result, recorded: list[str] | None) -> dict[str, Any]:
    return {
        "verdict": result.verdict,
        "passed": result.passed,
        "exit_code": result.exit_code,
        "subjects": [_subject(outcome) for outcome in result.outcomes],
        "not_run": result.not_run,
        "recorded": recorded,
    }


def _subject(outcome: Outcome) -> dict[str, Any]:
    before = outcome.before.model_dump(mode="json") if outcome.before else None
    return {
        "subject": outcome.subject,
        "source": str(outcome.source.path),
        "target": outcome.source.target,
        "line": outcome.source.line,
        "passed": outcome.passed,
        "exit_code": outcome.exit_code,
        "checks": [asdict(check) for check in outcome.checks],
        "better": outcome.better,
        "notes": outcome.notes,
        "stages": {name: record.model_dump(mode="json") for name, record in outcome.stages.items()},
        "artefact": outcome.artefact.model_dump(mode="json") if outcome.artefact else None,
        "baseline": before,
    }


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="Look at GITHUB_STEP_SUMMARY.") from error
