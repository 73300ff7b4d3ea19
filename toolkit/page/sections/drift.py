"""Drift by stage: how far each stage's outputs are from the reference, and what the stage lost."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.drift.report import DriftReport, OutputDrift, StageDrift, TaskDrift
from toolkit.page.blocks import Block, Cell, Column, Details, Figure, Group, Note, Section, Table, number
from toolkit.page.charts.stages import stage_chart
from toolkit.page.sources import Sources, Subject
from toolkit.page.words import bounds, decimals, exact, scientific, short

__all__ = ["drift"]

_NOW = "now"
_COLUMNS = (
    Column("stage"), Column("output"), Column("SQNR, dB", True), Column("lost, dB", True), Column("cosine", True),
    Column("relative L2", True), Column("max abs", True), Column("gate, dB", True), Column("verdict"),
)  # fmt: skip
_TASK = (
    ("count", "rows"),
    ("reference_accuracy", "accuracy of reference, %"),
    ("candidate_accuracy", "accuracy, %"),
    ("accuracy_drop", "drop, points"),
    ("top1_agreement", "top-1 agreement"),
    ("overlap_at_10", "overlap@10"),
    ("reference_perplexity", "perplexity of reference"),
    ("candidate_perplexity", "perplexity"),
    ("perplexity_ratio", "ratio"),
    ("kl", "KL, nats"),
)


def drift(sources: Sources) -> Section:
    """For each bundle the chart, the outputs of each stage, the task metric, and what was measured again."""
    lead = (
        "Each stage's outputs against fp32 PyTorch on the bundle's golden inputs, at their worst. The solid bar is "
        "what is left, the outlined one what the stage lost, the upright mark the gate. The last row, now, was "
        "measured for this page; all others are those of the bundle's drift.json."
    )
    return Section(
        "drift", "Drift by stage", lead, tuple(_group(index, each) for index, each in enumerate(sources.subjects))
    )


def _group(index: int, subject: Subject) -> Group:
    report = subject.drift
    chart = Figure(stage_chart(f"stages-{index}", report), f"Reference: {report.reference}")
    failures = [Note(f"{stage.stage}: {failure}") for stage in report.stages for failure in stage.failures]
    blocks: list[Block] = [
        chart,
        *failures,
        _outputs(report, subject.rerun.drift),
        *_tasks(report),
        Details("Where each stage ran, and its whole gate", (_places(subject),)),
    ]
    return Group(subject.label, tuple(blocks))


def _outputs(report: DriftReport, here: StageDrift | None) -> Table:
    losses = report.added_loss_db()
    rows = [row for stage, loss in zip(report.stages, losses, strict=True) for row in _rows(stage, stage.stage, loss)]
    return Table("Outputs by stage", _COLUMNS, (*rows, *(_rows(here, _NOW, None) if here else ())))


def _rows(stage: StageDrift, name: str, lost: float | None) -> Iterator[tuple[Cell, ...]]:
    for index, output in enumerate(stage.grouped()):
        first = index == 0
        yield (
            Cell(name if first else ""),
            Cell(output.name, kind="name"),
            *_metrics(name, output, lost if first else None),
            *(_judged(stage, name) if first else (Cell(""), Cell(""))),
        )


def _judged(stage: StageDrift, name: str) -> tuple[Cell, Cell]:
    bound = stage.gate.min_sqnr_db
    gate = number(f"{bound:g}" if bound is not None else "none", bound, stage=name, metric="min_sqnr_db")
    return gate, Cell("passed", kind="pass") if stage.passed else Cell("FAILED", kind="fail")


def _places(subject: Subject) -> Table:
    here = subject.rerun.drift
    stages = [(stage.stage, stage) for stage in subject.drift.stages] + ([(_NOW, here)] if here else [])
    rows = tuple((Cell(name), Cell(stage.ran_on), Cell(bounds(stage.gate))) for name, stage in stages)
    return Table("Stages", (Column("stage"), Column("ran on"), Column("gate")), rows)


def _metrics(stage: str, output: OutputDrift, lost: float | None) -> tuple[Cell, ...]:
    def of(metric: str, words: str, value: float | None) -> Cell:
        return number(words, value, stage=stage, output=output.name, metric=metric)

    return (
        of("sqnr_db", decimals(output.sqnr_db, 1), output.sqnr_db),
        of("lost_db", decimals(lost, 1), lost),
        of("cosine", decimals(output.cosine, 6), output.cosine),
        of("relative_l2", scientific(output.relative_l2), output.relative_l2),
        of("max_abs", scientific(output.max_abs), output.max_abs),
    )


def _tasks(report: DriftReport) -> Iterator[Block]:
    tasks = [(stage.stage, stage.task) for stage in report.stages if stage.task]
    if not tasks:
        yield Note("There is no held-out data for this model, so no task metric.", missing=True)
        return
    shown = [(field, title) for field, title in _TASK if any(getattr(task, field) is not None for _, task in tasks)]
    columns = (Column("stage"), Column("metric"), *(Column(title, True) for _, title in shown), Column("greedy text"))
    rows = tuple(
        (
            Cell(stage),
            Cell(_metric(task)),
            *(_task_cell(stage, task, field) for field, _ in shown),
            _greedy(stage, task),
        )
        for stage, task in tasks
    )
    if not any(task.greedy for _, task in tasks):
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    yield Table("Task metric on held-out data", columns, rows)


def _metric(task: TaskDrift) -> str:
    why = task.failure or task.skipped
    return f"{task.metric}: {why}" if why else task.metric


def _task_cell(stage: str, task: TaskDrift, field: str) -> Cell:
    value = getattr(task, field)
    if field == "count" and not task.skipped:
        return Cell(str(value), str(value), data={"stage": stage, "metric": field})
    words = f"≥ {short(value)}" if field == "kl" and task.kl_is_lower_bound else _digits(field, value)
    return Cell(words, exact(value), data={"stage": stage, "metric": field})


def _digits(field: str, value: float | None) -> str:
    if field == "kl":
        return short(value)
    return decimals(value, 2 if field.endswith(("accuracy", "perplexity", "drop")) else 4)


def _greedy(stage: str, task: TaskDrift) -> Cell:
    if task.greedy is None:
        return Cell("")
    agreement, steps = task.greedy.agreement, task.greedy.steps
    words = f"{decimals(100 * agreement, 1)}% of {steps}"
    return Cell(words, exact(agreement), data={"stage": stage, "metric": "greedy.agreement"})
