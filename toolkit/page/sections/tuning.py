"""What a search tried: the front, the winner, and every trial with why it was dropped."""

from __future__ import annotations

from typing import Any

from toolkit.console import byte_size
from toolkit.page.blocks import Block, Cell, Column, Details, Figure, Group, Note, Section, Table, number
from toolkit.page.charts.pareto import Against, pareto_chart
from toolkit.page.sources import Sources
from toolkit.page.words import MISSING, bounds, decimals, short
from toolkit.tune.result import Trial, TuneResult

__all__ = ["tuning"]

_LISTED = 3
"""How many modules of a recipe are named in the table."""
_CAPTION = "Filled points are the front, the outer ring is the winner, a cross broke the gate."
_COLUMNS = (
    Column("trial"), Column("target"), Column("what changes"), Column("SQNR, dB", True), Column("cosine", True),
    Column("size", True), Column("median, ms", True), Column("times fp32", True), Column("status"),
)  # fmt: skip


def tuning(sources: Sources) -> Section:
    """A group a search; a note where none was given."""
    lead = (
        "Speed is how many times as fast as fp32 a trial ran in interleaved rounds on one machine: median, and in "
        "brackets the 10th to 90th percentile. Trials were timed at different moments, so milliseconds do not compare."
    )
    groups = tuple(_group(index, each) for index, each in enumerate(sources.tunings))
    why = "No search was given: toolkit tune makes one, and --tune FILE shows it here."
    return Section("tuning", "Search for a recipe", lead, groups or (Note(why, missing=True),))


def _group(index: int, result: TuneResult) -> Group:
    blocks: list[Block] = [Note(_told(result))]
    objectives: tuple[Against, ...] = ("speed", "size") if result.objective == "both" else (result.objective,)
    for against in objectives:
        chart = pareto_chart(f"pareto-{index}-{against}", result, against)
        if chart:
            blocks.append(Figure(chart, _CAPTION, wide=True))
    blocks.append(Table("Trials", _COLUMNS, tuple(_row(trial, result) for trial in result.trials)))
    blocks += _details(result)
    return Group(f"{result.model} on {result.runtime}", tuple(blocks))


def _details(result: TuneResult) -> list[Block]:
    """What would make the table's rows tall: sentences on what was dropped, and long lists of modules."""
    columns = (Column("trial"), Column("why"))
    dropped = tuple((Cell(str(each.index)), Cell(each.reason)) for each in result.trials if each.reason)
    long = tuple(
        (Cell(str(each.index)), Cell(_spelled(each.quantization, whole=True), kind="name"))
        for each in result.trials
        if _spelled(each.quantization, whole=True) != _spelled(each.quantization)
    )
    found: list[Block] = []
    if dropped:
        found.append(
            Details(f"What was said of {len(dropped)} trials", (Table("Trials and reasons", columns, dropped),))
        )
    if long:
        changes = (Column("trial"), Column("what changes"))
        found.append(Details(f"The {len(long)} longer recipes", (Table("Longer recipes, whole", changes, long),)))
    return found


def _told(result: TuneResult) -> str:
    ended = "" if result.finished else " It ended before everything was tried."
    return (
        f"{result.verdict or 'The search gave no verdict.'}{ended} Searched for {result.objective} under "
        f"{bounds(result.gate)} at {result.shape}, by {result.ran_on} on {result.machine}."
    )


def _row(trial: Trial, result: TuneResult) -> tuple[Cell, ...]:
    return (
        Cell(str(trial.index), str(trial.index)),
        Cell(trial.target, kind="token"),
        Cell(_spelled(trial.quantization) or "nothing"),
        number(decimals(trial.sqnr_db, 1), trial.sqnr_db, trial=str(trial.index), metric="sqnr_db"),
        number(decimals(trial.cosine, 6), trial.cosine, trial=str(trial.index), metric="cosine"),
        Cell(MISSING) if trial.bytes is None else Cell(byte_size(trial.bytes), str(trial.bytes)),
        number(short(trial.median_ms), trial.median_ms, trial=str(trial.index), metric="median_ms"),
        number(_ratio(trial), trial.ratio, trial=str(trial.index), metric="ratio"),
        _status(trial, result),
    )


def _ratio(trial: Trial) -> str:
    if trial.ratio is None or trial.ratio_low is None or trial.ratio_high is None:
        return decimals(trial.ratio, 2)
    return f"{trial.ratio:.2f} ({trial.ratio_low:.2f} to {trial.ratio_high:.2f})"


def _status(trial: Trial, result: TuneResult) -> Cell:
    if trial.index == result.winner:
        return Cell("winner", kind="pass")
    if trial.status == "measured":
        return Cell("on the front" if trial.index in result.pareto else "measured")
    return Cell(trial.status, kind="fail")


def _spelled(quantization: dict[str, Any], *, whole: bool = False) -> str:
    return ", ".join(f"{name}={_value(value, whole)}" for name, value in quantization.items())


def _value(value: Any, whole: bool) -> str:
    parts = [f"{key}: {each}" for key, each in value.items()] if isinstance(value, dict) else value
    if not isinstance(parts, list | tuple):
        return str(parts)
    kept = parts if whole or len(parts) <= _LISTED else parts[: _LISTED - 1]
    return ", ".join(map(str, kept)) + (f" and {len(parts) - len(kept)} more" if len(kept) < len(parts) else "")
