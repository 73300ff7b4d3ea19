"""Divergence of attention, a cell for each layer and head: darker and larger numbers look elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from toolkit.compare.result import HeadDrift
from toolkit.page.charts.svg import chart, element, shortened, text
from toolkit.page.words import short

__all__ = ["DARKEST", "head_map"]

_LEFT, _TOP, _CELL, _ROW = 190.0, 24.0, 52.0, 24.0
DARKEST = 0.5
"""Opacity of the largest divergence: text on it must stay readable."""


def head_map(ident: str, heads: Sequence[HeadDrift]) -> Markup:
    """Rows are attention modules in the order given, columns heads; each cell says its divergence in nats."""
    modules = list(dict.fromkeys(head.module for head in heads))
    columns = sorted({head.head for head in heads})
    peak = max([0.0, *(head.divergence for head in heads if math.isfinite(head.divergence))])
    parts = [text(str(head), _LEFT + _CELL * (index + 0.5), 16, "tick", "middle") for index, head in enumerate(columns)]
    parts += [text("head", _LEFT - 8, 16, "tick", "end")]
    for index, module in enumerate(modules):
        parts.append(text(shortened(module, 27), _LEFT - 8, _TOP + _ROW * index + 16, "label", "end"))
    for head in heads:
        parts += _cell(head, modules.index(head.module), columns.index(head.head), peak)
    size = (_LEFT + _CELL * len(columns) + 8, _TOP + _ROW * len(modules) + 8)
    worst = max(heads, key=lambda head: head.divergence)
    described = (
        f"{len(modules)} layers of up to {len(columns)} heads; the largest divergence is "
        f"{short(worst.divergence)} nats, in head {worst.head} of {worst.module}."
    )
    return chart(ident, "Divergence of attention by layer and head", described, size, parts)


def _cell(head: HeadDrift, row: int, column: int, peak: float) -> Iterator[Markup]:
    x, y = _LEFT + _CELL * column, _TOP + _ROW * row
    share = min(1.0, max(0.0, head.divergence / peak)) if peak > 0 else 0.0
    yield element(
        "rect", element("title", f"{head.module}, head {head.head}: {short(head.divergence)} nats"),
        x=x + 1, y=y + 1, width=_CELL - 2, height=_ROW - 2, rx=2, class_="cell", fill_opacity=round(DARKEST * share, 3),
    )  # fmt: skip
    yield text(_brief(head.divergence), x + _CELL / 2, y + 16, "value", "middle")


def _brief(value: float) -> str:
    return f"{value:.2g}"
