"""SQNR along the modules in order of execution, with the threshold and the first module below it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from toolkit.compare.result import Comparison, ModuleDrift
from toolkit.page.charts.svg import Scale, chart, element, grid, shortened, text
from toolkit.page.words import decibels

__all__ = ["layer_chart"]

_LEAST, _STEP, _LEFT, _RIGHT, _TOP, _HEIGHT, _BELOW = 720.0, 9.0, 44.0, 112.0, 34.0, 190.0, 40.0
_BOTTOM = _TOP + _HEIGHT
_LABELLED = 12


def layer_chart(ident: str, comparison: Comparison) -> Markup:
    """One point a module: a dot, a diamond where it is bad, a cross where it could not be compared.

    A module that is exact lies on the upper edge. Stages that were measured too are thinner lines.
    """
    plot = _Plot.of(comparison)
    parts = [
        *grid(plot.y, (_LEFT, plot.width - _RIGHT)),
        plot.threshold(comparison.threshold_db),
        *plot.positions(len(comparison.modules)),
    ]
    order = [module.module for module in comparison.modules]
    for index, stage in enumerate(comparison.stages):
        places = {module.module: module for module in stage.modules}
        parts += plot.line([places.get(name) for name in order], _style(index))
    parts += plot.line(comparison.modules, "series")
    parts += _legend([stage.stage for stage in comparison.stages])
    parts += plot.first_bad(comparison)
    parts += [plot.point(index, module) for index, module in enumerate(comparison.modules)]
    level = comparison.threshold_db
    parts.append(text(f"threshold {level:g} dB", plot.width - _RIGHT + 6, plot.y.at(level) + 4, "value gate-text"))
    title = f"SQNR of {len(order)} modules in order of execution"
    return chart(ident, title, _described(comparison), (plot.width, _BOTTOM + _BELOW), parts)


@dataclass(frozen=True, slots=True)
class _Plot:
    width: float
    x: Scale
    y: Scale

    @classmethod
    def of(cls, comparison: Comparison) -> _Plot:
        count = len(comparison.modules)
        width = max(_LEAST, _LEFT + _RIGHT + _STEP * count)
        groups = [comparison.modules, *(stage.modules for stage in comparison.stages)]
        levels = [module.sqnr_db for modules in groups for module in modules]
        finite = [value for value in levels if value is not None and math.isfinite(value)]
        finite.append(comparison.threshold_db)
        low, high = min([0.0, *finite]), max([1.0, *finite]) * 1.05
        return cls(
            width,
            Scale(0, max(count - 1, 1), _LEFT + 8, width - _RIGHT - 8),
            Scale(low, high, _BOTTOM, _TOP),
        )

    def threshold(self, level: float) -> Markup:
        at = self.y.at(level)
        return element("line", x1=_LEFT, x2=self.width - _RIGHT, y1=at, y2=at, class_="gate")

    def positions(self, count: int) -> Iterator[Markup]:
        every = max(1, math.ceil(count / _LABELLED))
        for index in range(0, count, every):
            yield text(str(index + 1), self.x.at(index), _BOTTOM + 16, "tick", "middle")
        yield text("module, in order of execution", self.width - _RIGHT, _BOTTOM + 34, "tick", "end")
        yield text("SQNR, dB", _LEFT - 36, 14, "tick")

    def line(self, modules: Sequence[ModuleDrift | None], class_: str) -> Iterator[Markup]:
        for run in _runs(modules):
            points = " ".join(f"{self.x.at(index):.1f},{self.y.at(level):.1f}" for index, level in run)
            yield element("polyline", points=points, class_=class_)

    def point(self, index: int, module: ModuleDrift) -> Markup:
        x = self.x.at(index)
        hover = element("title", f"{index + 1}. {module.module}: {module.failure or decibels(module.sqnr_db)}")
        if module.sqnr_db is None:
            return _cross(x, _BOTTOM - 5, hover)
        y = self.y.at(module.sqnr_db)
        if module.bad:
            return element("path", hover, d=f"M{x:.1f} {y - 5:.1f}l5 5-5 5-5-5z", class_="dot bad")
        return element("circle", hover, cx=x, cy=y, r=2.5, class_="dot")

    def first_bad(self, comparison: Comparison) -> Iterator[Markup]:
        names = [module.module for module in comparison.modules]
        if comparison.first_bad not in names:
            return
        x = self.x.at(names.index(comparison.first_bad))
        right = x > self.width / 2
        yield element("line", x1=x, x2=x, y1=_TOP - 8, y2=_BOTTOM, class_="marker")
        words = f"first below: {shortened(comparison.first_bad, 44)}"
        yield text(words, x + (-5 if right else 5), _TOP - 10, "value bad-text", "end" if right else "start")


def _style(index: int) -> str:
    return f"series stage-{index % 3}"


def _legend(stages: Sequence[str]) -> Iterator[Markup]:
    for index, stage in enumerate(stages):
        x = _LEFT + 8 + 120 * index
        yield element("line", x1=x, x2=x + 22, y1=_BOTTOM + 30, y2=_BOTTOM + 30, class_=_style(index))
        yield text(f"after {shortened(stage, 12)}", x + 28, _BOTTOM + 34, "tick")


def _runs(modules: Sequence[ModuleDrift | None]) -> Iterator[list[tuple[int, float]]]:
    """Neighbouring modules that were measured: a line does not cross a gap."""
    run: list[tuple[int, float]] = []
    for index, module in enumerate(modules):
        if module is not None and module.sqnr_db is not None:
            run.append((index, module.sqnr_db))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _cross(x: float, y: float, hover: Markup) -> Markup:
    return element("path", hover, d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8", class_="cross")


def _described(comparison: Comparison) -> str:
    measured = [module for module in comparison.modules if module.sqnr_db is not None]
    bad = sum(module.bad for module in comparison.modules)
    words = f"{bad} of {len(comparison.modules)} modules are below {comparison.threshold_db:g} dB"
    if comparison.first_bad:
        words += f", the first is {comparison.first_bad}"
    if measured:
        worst = min(measured, key=lambda module: module.sqnr_db or 0.0)
        words += f"; the lowest is {worst.module} with {decibels(worst.sqnr_db)}"
    return words + "."
