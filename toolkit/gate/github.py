"""What GitHub Actions shows: annotations at a recipe's line, and a summary of the step in Markdown."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.gate.result import Outcome, Result
from toolkit.gate.rows import HEADERS, NUMBERS, not_run, remarks, rows

__all__ = ["markdown", "workflow_commands"]


def workflow_commands(result: Result) -> list[str]:
    """One annotation a subject for its failures, improvements and notes each: GitHub shows ten of a kind in a step.

    Files are named from GITHUB_WORKSPACE, where that is set and they are inside, else as they were given.
    """
    lines = []
    for outcome in result.outcomes:
        for kind, told in (("error", outcome.failures), ("notice", outcome.better), ("warning", outcome.notes)):
            if told:
                lines.append(_command(kind, f"toolkit gate: {outcome.subject}", "\n".join(told), outcome))
    absent = not_run(result)
    return [*lines, *([_command("warning", "toolkit gate", "\n".join(absent))] if absent else [])]


def markdown(result: Result) -> str:
    """The verdict first, then a row a subject, then what failed, what is better and what to know, in sentences."""
    failures, better, warnings = remarks(result)
    parts = [f"## Drift gate: {_plain(result.verdict)}", _table(result)]
    for title, sentences in (
        ("Failures", failures),
        ("Better than the baseline (it can be tightened: `toolkit gate … --update`)", better),
        ("Warnings", warnings),
    ):
        if sentences:
            parts.append("\n".join([f"### {title}", "", *(f"- {_plain(said)}" for said in sentences)]))
    return "\n\n".join(parts) + "\n"


def _table(result: Result) -> str:
    rule = ["---:" if column in NUMBERS else "---" for column in range(len(HEADERS))]
    lines = [HEADERS, rule, *([_plain(cell) for cell in row] for row in rows(result))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown takes as it is: no row of a table ends, no tag begins, no name turns into emphasis."""
    escaped = "".join(f"\\{char}" if char in "\\`*_|<>[]" else char for char in text)
    return " ".join(escaped.split())


def _command(kind: str, title: str, message: str, outcome: Outcome | None = None) -> str:
    place = {"file": _from_workspace(outcome.source.file), "line": str(outcome.source.line)} if outcome else {}
    properties = ",".join(f"{key}={_property(value)}" for key, value in {**place, "title": title}.items())
    return f"::{kind} {properties}::{_data(message)}"


def _from_workspace(path: Path) -> str:
    workspace = os.environ.get("GITHUB_WORKSPACE")
    if workspace:
        whole, root = path.resolve(), Path(workspace).resolve()
        if whole.is_relative_to(root):
            return whole.relative_to(root).as_posix()
    return path.as_posix()


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
