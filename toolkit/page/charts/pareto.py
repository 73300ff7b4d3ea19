"""What a search tried: closeness against speed or against size, with the gate, the front and the winner."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from toolkit.page.charts.svg import Scale, chart, element, grid, text
from toolkit.tune.result import Trial, TuneResult

__all__ = ["Against", "pareto_chart"]

Against = Literal["speed", "size"]

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 620.0, 56.0, 24.0, 30.0, 250.0
_CROWD = 8
_AXES: dict[Against, str] = {"speed": "times as fast as fp32 (higher is faster)", "size": "MB (lower is smaller)"}


@dataclass(frozen=True, slots=True)
class _Point:
    trial: Trial
    x: float
    y: float


def pareto_chart(ident: str, tuning: TuneResult, against: Against) -> Markup | None:
    """SQNR in dB along the page, speed or size up it; None where no trial has both.

    The front is a line only where it is one of these two: that of speed and size together is no line in either.
    """
    points = _points(tuning.trials, against)
    if not points:
        return None
    gate = tuning.gate.min_sqnr_db
    x = _padded([*(point.x for point in points), *([gate] if gate is not None else [])], _LEFT, _WIDTH - _RIGHT)
    y = _padded([point.y for point in points], _BOTTOM, _TOP)
    placed = {point.trial.index: (x.at(point.x), y.at(point.y)) for point in points}
    parts = [*grid(x, (_TOP, _BOTTOM), vertical=True), *grid(y, (_LEFT, _WIDTH - _RIGHT)), *_gate(gate, x)]
    if tuning.objective == against:
        parts += _front([placed[index] for index in tuning.pareto if index in placed])
    for point in points:
        parts += _mark(point, placed[point.trial.index], tuning)
    parts.append(text("SQNR, dB (right is closer)", _WIDTH - _RIGHT, _BOTTOM + 34, "tick", "end"))
    parts.append(text(_AXES[against], _LEFT - 46, 14, "tick"))
    return chart(ident, f"Trials: closeness against {against}", _described(tuning), (_WIDTH, _BOTTOM + 42), parts)


def _points(trials: Sequence[Trial], against: Against) -> list[_Point]:
    found = []
    for trial in trials:
        size = None if trial.bytes is None else trial.bytes / 1e6
        up = trial.ratio if against == "speed" else size
        if trial.sqnr_db is not None and up is not None and math.isfinite(trial.sqnr_db) and math.isfinite(up):
            found.append(_Point(trial, trial.sqnr_db, up))
    return found


def _padded(values: Sequence[float], start: float, end: float) -> Scale:
    """With room on both sides of the points, and not below zero where none is."""
    low, high = min(values), max(values)
    room = 0.2 * (high - low or abs(high) or 1.0)
    return Scale(low - room if low < 0 else max(0.0, low - room), high + room, start, end)


def _gate(level: float | None, x: Scale) -> Iterator[Markup]:
    if level is not None:
        at = x.at(level)
        yield element("line", x1=at, x2=at, y1=_TOP - 6, y2=_BOTTOM, class_="gate")
        yield text(f"gate {level:g} dB", at + 5, _TOP - 2, "value gate-text")


def _front(places: Sequence[tuple[float, float]]) -> Iterator[Markup]:
    if len(places) > 1:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(places))
        yield element("polyline", points=points, class_="series")


def _mark(point: _Point, place: tuple[float, float], tuning: TuneResult) -> Iterator[Markup]:
    x, y = place
    trial = point.trial
    hover = element("title", f"trial {trial.index}, {trial.target}: {point.x:.1f} dB, {point.y:.3g}, {trial.status}")
    front, winner = trial.index in tuning.pareto, trial.index == tuning.winner
    if trial.status != "measured":
        yield element("path", hover, d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8", class_="cross")
    else:
        yield element("circle", hover, cx=x, cy=y, r=5 if front else 3.5, class_="dot" if front else "ring")
    if winner:
        yield element("circle", cx=x, cy=y, r=10, class_="ring winner")
    if not (front or winner or trial.index == 0) and len(tuning.trials) > _CROWD:
        return
    words = f"{trial.index} winner" if winner else f"{trial.index} fp32" if trial.index == 0 else str(trial.index)
    right = x > _WIDTH - 110
    yield text(words, x + (-13 if right else 13), y + 4, "value", "end" if right else "start")


def _described(tuning: TuneResult) -> str:
    winner = "no winner" if tuning.winner is None else f"the winner is trial {tuning.winner}"
    front = ", ".join(map(str, tuning.pareto)) or "empty"
    return f"{len(tuning.trials)} trials, the front is {front}, {winner}."
