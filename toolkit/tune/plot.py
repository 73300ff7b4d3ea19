"""The trials as a picture: SQNR against speed, or against size where nothing was timed, as one SVG without script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from toolkit.tune.result import Trial, TuneResult
from toolkit.tune.words import changes_of

__all__ = ["Axis", "axis_of", "pareto_svg"]

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 56, 52
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-size: 14px; font-weight: 600 }
.grid { stroke: #ddd } .front { fill: none; stroke: #1565c0; stroke-width: 1.5 } .spread { stroke: #888 }
.inside { fill: #888 } .best { fill: #1565c0 } .winner { fill: #2e7d32 } .drifted { fill: none; stroke: #c62828 }
.gate { stroke: #c62828; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
  svg { background: #181818 } text { fill: #ddd } .grid { stroke: #333 } .front { stroke: #64b5f6 }
  .best { fill: #64b5f6 } .winner { fill: #81c784 } .drifted, .gate { stroke: #ef9a9a }
}
"""


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from values to pixels, with round ticks that cover all values."""

    ticks: tuple[float, ...]
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value, which is held to the axis where it lies beyond it, as an infinite one does."""
        low, high = self.ticks[0], self.ticks[-1]
        share = (min(max(value, low), high) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 2)


def axis_of(values: Sequence[float], start: float, end: float, wanted: int = 5) -> Axis:
    """An axis whose ticks lie at multiples of 1, 2 or 5 times a power of ten and enclose the finite values."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    step = _step(max((high - low) / wanted, abs(high) * 1e-3, 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return Axis(tuple(round(place * step, 10) for place in range(first, last + 1)), start, end)


def pareto_svg(result: TuneResult) -> str:
    """The picture of a search: x is how many times as fast as fp32, with its spread, or MB; y is SQNR in dB.

    A trial that drifted was not timed: it stands at the left edge. The others span the axes, but for fp32's SQNR, which
    is far above them: it stands at the upper edge, as spreads that reach beyond the axis end at its edge.
    """
    timed = result.objective != "size"
    drawn = [trial for trial in result.trials if trial.sqnr_db is not None and trial.bytes is not None]
    xs = [x for trial in drawn if math.isfinite(x := _x(trial, timed))]
    across = axis_of([*xs, *([1.0] if timed else [])], _LEFT, _WIDTH - _RIGHT)
    levels = [_level(trial) for trial in drawn if trial.index] or [_level(trial) for trial in drawn]
    bound = result.gate.min_sqnr_db
    up = axis_of([*levels, *([] if bound is None else [bound])], _HEIGHT - _BOTTOM, _TOP)
    label = "times as fast as fp32" if timed else "MB on disk"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(result.verdict)}</title><style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="24">{escape(result.model)} on {escape(result.runtime)}</text>',
        f'<text x="{_LEFT}" y="42">{escape(result.shape)}; filled: within the gate</text>',
        *_grid(across, up, label),
        *_gate_line(result, up),
        _front_line(result, across, up, timed),
        *(_point(result, trial, across, up, timed) for trial in drawn),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9)))


def _x(trial: Trial, timed: bool) -> float:
    if not timed:
        return (trial.bytes or 0) / 1e6
    return -math.inf if trial.ratio is None else trial.ratio


def _level(trial: Trial) -> float:
    return math.inf if trial.sqnr_db is None else trial.sqnr_db


def _grid(across: Axis, up: Axis, label: str) -> list[str]:
    lines = []
    for value in across.ticks:
        x = across.at(value)
        lines.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        lines.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for value in up.ticks:
        y = up.at(value)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    lines.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{label}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    lines.append(f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">SQNR, dB</text>')
    return lines


def _gate_line(result: TuneResult, up: Axis) -> list[str]:
    bound = result.gate.min_sqnr_db
    if bound is None:
        return []
    y = up.at(bound)
    return [
        f'<line class="gate" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>',
        f'<text x="{_WIDTH - _RIGHT}" y="{y - 4}" text-anchor="end">gate {bound:g} dB</text>',
    ]


def _front_line(result: TuneResult, across: Axis, up: Axis, timed: bool) -> str:
    if result.objective == "both":
        return ""  # A front of three measures is no line in two.
    trials = sorted((result.trials[index] for index in result.pareto), key=lambda trial: _x(trial, timed))
    places = " ".join(f"{across.at(_x(trial, timed))},{up.at(_level(trial))}" for trial in trials)
    return f'<polyline class="front" points="{places}"/>'


def _point(result: TuneResult, trial: Trial, across: Axis, up: Axis, timed: bool) -> str:
    x, y = across.at(_x(trial, timed)), up.at(_level(trial))
    kind = (
        "drifted" if trial.status == "drifted"
        else "winner" if trial.index == result.winner
        else "best" if trial.index in result.pareto
        else "inside"
    )  # fmt: skip
    bar = ""
    if timed and trial.ratio_low is not None and trial.ratio_high is not None and trial.index:
        ends = across.at(trial.ratio_low), across.at(trial.ratio_high)
        bar = f'<line class="spread" x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}"/>'
    said = str(trial.index) if trial.index else f"fp32, {_level(trial):.0f} dB"
    name = f'<text x="{x + 8}" y="{y + 15 if y <= _TOP + 8 else y - 6}">{said}</text>' if kind != "inside" else ""
    about = f"<title>{trial.index}: {escape(changes_of(trial))}</title>"
    return f'{bar}<circle class="{kind}" cx="{x}" cy="{y}" r="5">{about}</circle>{name}'
