"""The largest magnitudes of weights and activations on a log scale, beside the largest float16."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from toolkit.compare.result import ModuleDrift
from toolkit.page.charts.svg import Scale, chart, element, grid, shortened, text
from toolkit.page.words import short

__all__ = ["FLOAT16_MAX", "range_chart", "widest"]

FLOAT16_MAX = 65504.0
"""The largest finite value of IEEE 754 binary16, (2 - 2^-10) * 2^15."""

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 620.0, 226.0, 20.0, 22.0, 20.0
_SHOWN = 24


def widest(modules: Sequence[ModuleDrift]) -> list[ModuleDrift]:
    """The modules that the chart shows, in order of execution: those that overflow, then the largest magnitudes."""
    known = [index for index, module in enumerate(modules) if _magnitudes(module)]
    ranked = sorted(known, key=lambda index: (not modules[index].overflow, -max(_magnitudes(modules[index]))))
    return [modules[index] for index in sorted(ranked[:_SHOWN])]


def range_chart(ident: str, modules: Sequence[ModuleDrift]) -> Markup:
    """A row a module: a square for its weight, a dot for the reference's output, a ring for the candidate's."""
    shown = widest(modules)
    values = [value for module in shown for value in _magnitudes(module) if 0 < value < math.inf]
    low, high = min([1.0, *values]), max([FLOAT16_MAX, *values])
    scale = Scale(
        10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)), _LEFT, _WIDTH - _RIGHT, log=True
    )
    bottom = _TOP + _ROW * len(shown)
    limit = scale.at(FLOAT16_MAX)
    parts = [
        *grid(scale, (_TOP, bottom), vertical=True),
        element("line", x1=limit, x2=limit, y1=_TOP - 4, y2=bottom, class_="gate"),
        text("largest fp16, 65504", limit, 12, "value gate-text", "end"),
    ]
    for index, module in enumerate(shown):
        parts += _row(module, _TOP + _ROW * (index + 0.5), scale)
    parts.append(text("largest magnitude, log scale", _WIDTH - _RIGHT, bottom + 32, "tick", "end"))
    title = f"Largest magnitudes of {len(shown)} of {len(modules)} modules"
    return chart(ident, title, _described(shown), (_WIDTH, bottom + 40), parts)


def _magnitudes(module: ModuleDrift) -> list[float]:
    values = (module.weight_absmax, module.reference_absmax, module.candidate_absmax)
    return [value for value in values if value is not None]


def _row(module: ModuleDrift, middle: float, scale: Scale) -> Iterator[Markup]:
    class_ = "label bad-text" if module.overflow else "label"
    words = shortened(module.module, 26 if module.overflow else 32)
    yield text(f"overflow {words}" if module.overflow else words, _LEFT - 10, middle + 4, class_, "end")
    yield element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=middle, y2=middle, class_="grid")
    bad = " bad" if module.overflow else ""
    if module.weight_absmax is not None:
        x = scale.at(module.weight_absmax)
        yield element(
            "rect",
            _hover("weight", module.weight_absmax),
            x=x - 3.5,
            y=middle - 3.5,
            width=7,
            height=7,
            class_="weight",
        )
    if module.reference_absmax is not None:
        hover = _hover("reference", module.reference_absmax)
        yield element("circle", hover, cx=scale.at(module.reference_absmax), cy=middle, r=3, class_="dot")
    if module.candidate_absmax is not None:
        hover = _hover("candidate", module.candidate_absmax)
        yield element("circle", hover, cx=scale.at(module.candidate_absmax), cy=middle, r=5.5, class_=f"ring{bad}")


def _hover(what: str, value: float) -> Markup:
    return element("title", f"{what}: {short(value)}")


def _described(modules: Sequence[ModuleDrift]) -> str:
    over = [module.module for module in modules if module.overflow]
    words = f"beyond the candidate's number type: {', '.join(over)}" if over else "none overflows"
    return f"Weights, reference and candidate outputs on a log scale with the largest float16, 65504; {words}."
