"""A drift report for people: a coloured table, or the same rows as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.drift.report import DriftReport, OutputDrift, StageDrift, TaskDrift

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["render", "render_text", "task_words"]

_HEADERS = ("stage", "ran on", "output", "SQNR dB", "lost dB", "cosine", "rel. L2", "max abs", "task", "gate")
_NUMBERS = range(3, 8)


def render(report: DriftReport) -> Table:
    """A rich table, one row an output and one for a cache; a failing stage is red."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Drift from {report.reference}", title_justify="left")
    for index, header in enumerate(_HEADERS):
        table.add_column(header, justify="right" if index in _NUMBERS else "left")
    for row in _rows(report):
        style = "red" if row[-1] == "FAIL" else None
        table.add_row(*(Text(cell) for cell in row), style=style)
    return table


def render_text(report: DriftReport) -> str:
    """The same rows in aligned columns, then a line for each failure; no colour, no width limit."""
    rows = [_HEADERS, *_rows(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADERS))]
    lines = [_align(row, widths) for row in rows]
    failures = [f"{stage.stage}: {sentence}" for stage in report.stages for sentence in stage.failures]
    return "\n".join([f"Drift from {report.reference}", *lines, *failures])


def _rows(report: DriftReport) -> list[tuple[str, ...]]:
    losses = report.added_loss_db()
    return [row for stage, loss in zip(report.stages, losses, strict=True) for row in _stage_rows(stage, loss)]


def _stage_rows(stage: StageDrift, loss: float | None) -> list[tuple[str, ...]]:
    rows = []
    for index, output in enumerate(stage.grouped()):
        first = index == 0
        head = (stage.stage, stage.ran_on) if first else ("", "")
        lost = _decimals(loss, 1) if first else ""
        tail = (task_words(stage.task), "pass" if stage.passed else "FAIL") if first else ("", "")
        rows.append((*head, output.name, *_metrics(output, lost), *tail))
    return rows


def _metrics(output: OutputDrift, lost: str) -> tuple[str, ...]:
    return (
        _decimals(output.sqnr_db, 1),
        lost,
        _decimals(output.cosine, 6),
        _scientific(output.relative_l2),
        _scientific(output.max_abs),
    )


def task_words(task: TaskDrift | None) -> str:
    """The task metric in a few words, as `overlap@10 0.98`; empty where there is none."""
    if task is None:
        return ""
    if task.failure:
        return "not comparable"
    if task.skipped and task.metric != "language":
        return f"not measured: {task.skipped}"
    if task.metric == "language":
        return ", ".join([*_language(task), *_greedy(task)])
    if task.metric == "retrieval":
        return f"overlap@10 {_decimals(task.overlap_at_10, 4)}"
    agreement = f"top-1 agreement {_decimals(task.top1_agreement, 4)}"
    if task.reference_accuracy is None:
        return agreement
    before, after = _decimals(task.reference_accuracy, 2), _decimals(task.candidate_accuracy, 2)
    return f"accuracy {before}% to {after}%, {agreement}"


def _language(task: TaskDrift) -> Iterator[str]:
    if task.skipped:
        yield f"not measured: {task.skipped}"
        return
    before, after = _decimals(task.reference_perplexity, 2), _decimals(task.candidate_perplexity, 2)
    yield f"perplexity {before} → {after}"
    yield f"KL {'≥ ' if task.kl_is_lower_bound else ''}{_digits(task.kl)}"
    yield f"top-1 {_percent(task.top1_agreement)}"


def _greedy(task: TaskDrift) -> Iterator[str]:
    if task.greedy:
        yield f"greedy {_percent(task.greedy.agreement)} of {task.greedy.steps}"


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _decimals(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _align(row: tuple[str, ...], widths: list[int]) -> str:
    cells = (
        cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()
