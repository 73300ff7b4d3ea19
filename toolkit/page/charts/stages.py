"""SQNR after each stage as bars, what the stage lost as the ghost of a bar, and its gate as a mark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from toolkit.drift.report import DriftReport, StageDrift
from toolkit.page.charts.svg import Scale, chart, element, grid, shortened, text
from toolkit.page.words import decibels

__all__ = ["stage_chart"]

_WIDTH, _LEFT, _RIGHT, _ROW, _BAR = 380.0, 74.0, 8.0, 42.0, 14.0
_NOTABLE_DB = 0.05


def stage_chart(ident: str, drift: DriftReport) -> Markup:
    """One row a stage at its worst output's SQNR, in dB."""
    levels = [stage.worst().sqnr_db for stage in drift.stages]
    gates = [stage.gate.min_sqnr_db for stage in drift.stages]
    scale = _scale([*levels, *gates])
    bottom = _ROW * len(levels) + 4
    parts = grid(scale, (0.0, bottom), vertical=True)
    for index, (stage, lost) in enumerate(zip(drift.stages, drift.added_loss_db(), strict=True)):
        before = levels[index - 1] if index else None
        parts += _row(stage, levels[index], before, lost, _ROW * index, scale)
    parts.append(text("SQNR, dB; higher is closer", _WIDTH - _RIGHT, bottom + 32, "tick", "end"))
    title = "SQNR after each stage"
    return chart(ident, title, _described(drift), (_WIDTH, bottom + 40), parts)


def _scale(values: Sequence[float | None]) -> Scale:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min([0.0, *finite]), max([1.0, *finite])
    return Scale(low, high * 1.02, _LEFT, _WIDTH - _RIGHT)


def _row(
    stage: StageDrift, level: float | None, before: float | None, lost: float | None, top: float, scale: Scale
) -> Iterator[Markup]:
    middle, zero = top + 24, scale.at(0)
    bar = middle - _BAR / 2
    yield text(shortened(stage.stage, 11), _LEFT - 8, middle + 4, "label", "end")
    if level is None:
        yield text("not comparable", zero + 6, middle + 4, "label bad-text")
        return
    end = scale.at(level)
    notable = lost is not None and lost >= _NOTABLE_DB
    if before is not None and notable:
        yield _bar(end, scale.at(before), bar, "ghost")
    yield _bar(zero, end, bar, "bar" if stage.passed else "bar bad")
    words = decibels(level) + (f", lost {lost:.1f}" if notable else "")
    yield text(words, zero + 2, bar - 4, "value")
    gate = stage.gate.min_sqnr_db
    if gate is not None:
        at = scale.at(gate)
        yield element("line", x1=at, x2=at, y1=bar, y2=bar + _BAR, class_="halo")
        yield element("line", x1=at, x2=at, y1=bar - 1, y2=bar + _BAR + 7, class_="gate")


def _bar(start: float, end: float, top: float, class_: str) -> Markup:
    left, right = sorted((start, end))
    return element("rect", x=left, y=top, width=max(right - left, 1.0), height=_BAR, rx=2, class_=class_)


def _described(drift: DriftReport) -> str:
    parts = []
    for stage in drift.stages:
        level, gate = stage.worst().sqnr_db, stage.gate.min_sqnr_db
        bound = "" if gate is None else f", gate {gate:g} dB"
        parts.append(f"{stage.stage}: {'not comparable' if level is None else decibels(level)}{bound}")
    return "; ".join(parts) + "."
