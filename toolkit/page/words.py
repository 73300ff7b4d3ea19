"""How numbers are written on the page: one place for digits, units, infinities and what was not measured."""

from __future__ import annotations

import math

from toolkit.drift.gates import describe
from toolkit.types import Gate

__all__ = ["MISSING", "bounds", "compact", "counted", "decibels", "decimals", "exact", "scientific", "short"]

_DB = "\N{NO-BREAK SPACE}dB"
MISSING = "\N{EN DASH}"


def decimals(value: float | None, places: int) -> str:
    """`44.1`; an infinity as its sign, a dash where nothing was measured."""
    return MISSING if value is None else _infinite(value) or f"{value:.{places}f}"


def decibels(value: float | None) -> str:
    """`44.1 dB`, `exact` where there is no noise at all."""
    if value == math.inf:
        return "exact"
    return decimals(value, 1) + ("" if value is None else _DB)


def scientific(value: float | None) -> str:
    """`2.9e-07`, for what spans decades."""
    return MISSING if value is None else _infinite(value) or f"{value:.1e}"


def short(value: float | None) -> str:
    """Three significant digits, `0.0242` or `1.4e-06`."""
    return MISSING if value is None else _infinite(value) or f"{value:.3g}"


def compact(value: float) -> str:
    """For the ticks of an axis: `0.02`, `150k`, `2M`."""
    for least, unit, name in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def bounds(gate: Gate) -> str:
    """`sqnr=18, cosine=0.992`, which a line may break; `no gate` where nothing is bounded."""
    return describe(gate).replace(",", ", ") or "no gate"


def counted(count: int, noun: str) -> str:
    """`1 module`, `2 modules`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def exact(value: float | None) -> str:
    """The number as a machine reads it back, bit by bit; empty where nothing was measured."""
    return "" if value is None else repr(float(value))


def _infinite(value: float) -> str:
    return "" if math.isfinite(value) else ("∞" if value > 0 else "\N{MINUS SIGN}∞")
