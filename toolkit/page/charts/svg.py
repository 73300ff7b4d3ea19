"""SVG by hand: escaped elements, scales with round ticks, and the frame that every chart stands in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

from toolkit.page.words import compact

__all__ = ["Scale", "chart", "element", "grid", "shortened", "text"]

_ELLIPSIS = "…"
_ROUND = (1, 2, 5, 10)


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """`<tag attributes>children</tag>`, all of it escaped but children that are Markup.

    An underscore in an attribute's name is a hyphen, a trailing one goes; None leaves the attribute out.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_spelled(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(child) for child in children)
    # Every part was escaped above; `tag` and attribute names are ours.
    return Markup(f"<{tag}{given}>{inside}</{tag}>")


def text(words: str, x: float, y: float, class_: str = "label", anchor: str = "start") -> Markup:
    """Words at a point, their baseline at `y`."""
    return element("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def chart(ident: str, title: str, description: str, size: tuple[float, float], parts: Iterable[Markup]) -> Markup:
    """The whole chart; `ident` is unique in the page, `size` its width and height in CSS pixels."""
    width, height = size
    head = (
        element("title", title, id=f"{ident}-title"),
        element("desc", description, id=f"{ident}-desc"),
    )
    return element(
        "svg",
        *head,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_labelledby=f"{ident}-title {ident}-desc",
        viewBox=f"0 0 {_spelled(width)} {_spelled(height)}",
        width=width,
        height=height,
    )


def shortened(name: str, most: int) -> str:
    """The name at `most` characters; of a module's path the end tells more, so the beginning goes."""
    return name if len(name) <= most else _ELLIPSIS + name[1 - most :]


@dataclass(frozen=True, slots=True)
class Scale:
    """From values (`low` to `high`) to pixels (`start` to `end`), linear or, with `log`, by decades.

    A value beyond an end is drawn at that end: infinite metrics stay inside the chart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where the value lies, in pixels."""
        low, high, own = (self._level(each) for each in (self.low, self.high, min(max(value, self.low), self.high)))
        share = 0.0 if high == low else (own - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values between the ends: steps of 1, 2 or 5 times a power of ten, or whole decades."""
        if self.log:
            return _decades(self.low, self.high, count)
        if self.high <= self.low:
            return [self.low]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in _ROUND if factor * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _level(self, value: float) -> float:
        return math.log10(value) if self.log else value


def grid(scale: Scale, across: tuple[float, float], *, vertical: bool = False) -> list[Markup]:
    """A hairline and a label at each tick: at the left of horizontal lines, below vertical ones.

    `across` are the pixels between which the lines run, top to bottom for vertical ones.
    """
    parts = []
    for value in scale.ticks():
        place = scale.at(value)
        label = compact(value)
        if vertical:
            parts.append(element("line", x1=place, x2=place, y1=across[0], y2=across[1], class_="grid"))
            parts.append(text(label, place, across[1] + 14, "tick", "middle"))
        else:
            parts.append(element("line", x1=across[0], x2=across[1], y1=place, y2=place, class_="grid"))
            parts.append(text(label, across[0] - 6, place + 4, "tick", "end"))
    return parts


def _decades(low: float, high: float, count: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / max(count, 1)))
    return [10.0**power for power in range(first, last + 1, step)]


def _spelled(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
    return str(value)
