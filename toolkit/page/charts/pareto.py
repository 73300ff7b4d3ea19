"""What a search tried: time against size, or closeness against size, with the front and the winner."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from toolkit.page.charts.svg import Scale, chart, element, grid, text
from toolkit.tune.result import Trial, TuneResult

__all__ = ["pareto_chart"]

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 620.0, 56.0, 24.0, 30.0, 250.0


@dataclass(frozen=True, slots=True)
class _Point:
    trial: Trial
    x: float
    y: float


def pareto_chart(ident: str, tuning: TuneResult) -> Markup | None:
    """Time (ms) against size (MB) where time was measured, else SQNR (dB) against size; None with nothing to draw."""
    timed = any(trial.median_ms is not None for trial in tuning.trials)
    points = _points(tuning.trials, timed=timed)
    if not points:
        return None
    x = _padded([point.x for point in points], _LEFT, _WIDTH - _RIGHT)
    y = _padded([point.y for point in points], _BOTTOM, _TOP)
    placed = {point.trial.index: (x.at(point.x), y.at(point.y)) for point in points}
    parts = [*grid(x, (_TOP, _BOTTOM), vertical=True), *grid(y, (_LEFT, _WIDTH - _RIGHT))]
    parts += _front([placed[index] for index in tuning.pareto if index in placed])
    for point in points:
        parts += _mark(point, placed[point.trial.index], tuning)
    axis = "median, ms (left is faster)" if timed else "SQNR, dB (right is closer)"
    parts.append(text(axis, _WIDTH - _RIGHT, _BOTTOM + 34, "tick", "end"))
    parts.append(text("MB (lower is smaller)", _LEFT - 46, 14, "tick"))
    title = "Trials: time against size" if timed else "Trials: SQNR against size"
    return chart(ident, title, _described(tuning), (_WIDTH, _BOTTOM + 42), parts)


def _points(trials: Sequence[Trial], *, timed: bool) -> list[_Point]:
    found = []
    for trial in trials:
        across = trial.median_ms if timed else trial.sqnr_db
        if across is not None and math.isfinite(across) and trial.bytes is not None:
            found.append(_Point(trial, across, trial.bytes / 1e6))
    return found


def _padded(values: Sequence[float], start: float, end: float) -> Scale:
    """With room on both sides of the points, and never below zero."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    room = 0.25 * (max(finite) - min(finite) or max(finite) or 1.0)
    return Scale(max(0.0, min(finite) - room), max(finite) + room, start, end)


def _front(places: Sequence[tuple[float, float]]) -> Iterator[Markup]:
    if len(places) > 1:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(places))
        yield element("polyline", points=points, class_="series")


def _mark(point: _Point, place: tuple[float, float], tuning: TuneResult) -> Iterator[Markup]:
    x, y = place
    trial = point.trial
    hover = element("title", f"trial {trial.index}, {trial.target}: {point.x:.3g}, {point.y:.3g} MB, {trial.status}")
    front, winner = trial.index in tuning.pareto, trial.index == tuning.winner
    if trial.status != "measured":
        yield element("path", hover, d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8", class_="cross")
    else:
        yield element("circle", hover, cx=x, cy=y, r=5 if front else 3.5, class_="dot" if front else "ring")
    if winner:
        yield element("circle", cx=x, cy=y, r=10, class_="ring winner")
    words = f"{trial.index} winner" if winner else f"{trial.index} fp32" if trial.index == 0 else str(trial.index)
    right = x > _WIDTH - 110
    yield text(words, x + (-13 if right else 13), y + 4, "value", "end" if right else "start")


def _described(tuning: TuneResult) -> str:
    winner = "no winner" if tuning.winner is None else f"the winner is trial {tuning.winner}"
    front = ", ".join(map(str, tuning.pareto)) or "empty"
    return f"{len(tuning.trials)} trials, the front is {front}, {winner}."
