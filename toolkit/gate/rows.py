"""One line a subject: what it measures now, what it measured for the baseline, and the change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.console import byte_size
from toolkit.drift.gates import TASK_BOUNDS
from toolkit.gate.record import StageRecord
from toolkit.gate.result import Outcome, Result

__all__ = ["HEADERS", "Row", "not_run", "remarks", "rows"]

HEADERS = ("subject", "verdict", "stage", "SQNR dB", "baseline", "change", "task", "size", "baseline", "change")
NUMBERS = frozenset((3, 4, 5, 7, 8, 9))
"""Columns that are aligned to the right."""

Row = tuple[str, ...]
_NONE = "-"


@dataclass(frozen=True, slots=True)
class _Last:
    """The last stage that a subject came to: its name, its worst SQNR in dB, its task metrics."""

    name: str = _NONE
    sqnr: float | None = None
    task: Mapping[str, float] | None = None


def rows(result: Result) -> list[Row]:
    """A row a subject, in the order of HEADERS."""
    return [_row(outcome) for outcome in result.outcomes]


def remarks(result: Result) -> tuple[list[str], list[str], list[str]]:
    """Sentences, each with its subject: failures; improvements that the baseline does not know; warnings."""
    failures, better, warnings = [], [], []
    for outcome in result.outcomes:
        failures += [f"{outcome.subject}: {said}" for said in outcome.failures]
        better += [f"{outcome.subject}: {said}" for said in outcome.better]
        warnings += [f"{outcome.subject}: {said}" for said in outcome.notes]
    return failures, better, warnings + not_run(result)


def not_run(result: Result) -> list[str]:
    """A sentence for each subject that the baseline knows and the recipes do not name any more."""
    return [f"{subject} is in the baseline but was not run" for subject in result.not_run]


def _row(outcome: Outcome) -> Row:
    now = _last(outcome.stages)
    known_stages = outcome.before.stages if outcome.before else {}
    before = _last({now.name: known_stages[now.name]} if now.name in known_stages else {})
    size = outcome.artefact.bytes if outcome.artefact else None
    known = outcome.before.artefact.bytes if outcome.before else None
    return (
        outcome.subject,
        "pass" if outcome.passed else "FAIL",
        now.name,
        *_three(now.sqnr, before.sqnr),
        _task_words(now.task, before.task),
        byte_size(size) if size is not None else _NONE,
        byte_size(known) if known is not None else _NONE,
        f"{100 * (size - known) / known:+.1f}%" if size is not None and known else _NONE,
    )


def _last(stages: Mapping[str, StageRecord]) -> _Last:
    if not stages:
        return _Last()
    name, record = list(stages.items())[-1]
    levels = [metrics["sqnr_db"] for metrics in record.outputs.values() if "sqnr_db" in metrics]
    return _Last(name, min(levels, default=None), record.task)


def _three(now: float | None, before: float | None) -> tuple[str, str, str]:
    change = f"{now - before:+.2f}" if now is not None and before is not None and now != before else ""
    same = "0" if now is not None and now == before else _NONE
    return _decimals(now), _decimals(before), change or same


def _task_words(now: Mapping[str, float] | None, before: Mapping[str, float] | None) -> str:
    said = []
    for bound in TASK_BOUNDS:
        if now and bound.metric in now:
            value, old = now[bound.metric], (before or {}).get(bound.metric)
            moved = f" (was {old:.6g})" if old is not None and old != value else ""
            said.append(f"{bound.title} {value:.6g}{bound.unit}{moved}")
    return ", ".join(said) or _NONE


def _decimals(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"
