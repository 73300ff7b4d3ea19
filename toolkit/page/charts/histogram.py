"""How the error is distributed: a bar for each interval."""

from __future__ import annotations

from itertools import pairwise

from markupsafe import Markup

from toolkit.compare.result import Histogram
from toolkit.page.charts.svg import Scale, chart, element, grid, text
from toolkit.page.words import short

__all__ = ["histogram"]

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 360.0, 40.0, 10.0, 8.0, 140.0


def histogram(ident: str, error: Histogram, unit: str) -> Markup:
    """Counts over the error, candidate less reference; `unit` names the axis."""
    x = Scale(error.edges[0], error.edges[-1], _LEFT, _WIDTH - _RIGHT)
    y = Scale(0, max([1, *error.counts]), _BOTTOM, _TOP)
    parts = grid(y, (_LEFT, _WIDTH - _RIGHT))
    parts += grid(x, (_BOTTOM, _BOTTOM + 4), vertical=True)
    for (left, right), count in zip(pairwise(error.edges), error.counts, strict=True):
        if count:
            parts.append(_bar(x.at(left), x.at(right), y.at(count), f"{short(left)} to {short(right)}: {count}"))
    parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=_BOTTOM, y2=_BOTTOM, class_="axis"))
    parts.append(text(unit, _WIDTH - _RIGHT, _BOTTOM + 36, "tick", "end"))
    total = sum(error.counts)
    described = f"{total} values between {short(error.edges[0])} and {short(error.edges[-1])}."
    return chart(ident, "Distribution of the error", described, (_WIDTH, _BOTTOM + 42), parts)


def _bar(left: float, right: float, top: float, hover: str) -> Markup:
    return element(
        "rect", element("title", hover), x=left, y=top, width=max(right - left - 1, 0.5), height=_BOTTOM - top,
        class_="bar",
    )  # fmt: skip
