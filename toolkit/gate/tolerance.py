"""How much worse than its baseline a subject may be; docs/gate-in-ci.md says why as much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolkit.errors import UsageError
from toolkit.plugins import nearest

__all__ = ["DEFAULTS", "FLOAT32_DB", "ROUNDING_DB", "Tolerance", "Tolerances", "parse_tolerances"]

Tolerances = Mapping[str, float | None]
"""By key, as `sqnr`; None: not compared."""

ROUNDING_DB = 100.0
"""From here on only float32's own rounding is left, and what is measured is the order in which a kernel adds."""

FLOAT32_DB = 140.0
"""Twice float32's 24 bits are worth 144 dB: a level above this says nothing more, exact outputs included."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """`relative`: the value is in per cent of the baseline's. Differences up to `floor` pass in any case."""

    default: float
    relative: bool = False
    floor: float = 0.0
    unit: Literal["", " dB", "%", " points"] = ""

    def amount(self, value: float, before: float) -> float:
        """`value` in the metric's own unit, where the baseline measured `before`."""
        return max(self.floor, abs(before) * value / 100 if self.relative else value)

    def words(self, value: float) -> str:
        """`value` with its unit, as `0.5 dB`."""
        return f"{value:g}{self.unit}"


DEFAULTS: Mapping[str, Tolerance] = {
    "sqnr": Tolerance(0.5, unit=" dB"),
    "sqnr_fp32": Tolerance(6.0, unit=" dB"),
    "cosine": Tolerance(1e-4),
    "relative_l2": Tolerance(6.0, relative=True, unit="%"),
    "max_abs": Tolerance(25.0, relative=True, unit="%"),
    "accuracy_drop": Tolerance(0.3, unit=" points"),
    "top1": Tolerance(0.003),
    "perplexity_ratio": Tolerance(0.005),
    "kl": Tolerance(10.0, relative=True, floor=1e-4, unit="%"),
    "overlap": Tolerance(0.005),
    "size": Tolerance(2.0, relative=True, unit="%"),
    "nodes": Tolerance(2.0, relative=True, unit="%"),
}
"""By the keys of `--drift-gate`; `sqnr_fp32` is for outputs at the level of float32's rounding."""


def parse_tolerances(text: str) -> dict[str, float | None]:
    """`sqnr=1,size=5,max_abs=off` as values by key; a per cent sign and hyphens in keys may be written.

    Raises UsageError for an unknown or repeated key and for a value that is no number from 0.
    """
    given: dict[str, float | None] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        word, equals, value = (piece.strip() for piece in part.partition("="))
        key = word.replace("-", "_")
        if not equals or key not in DEFAULTS:
            raise UsageError(f"cannot read '{part}' in the tolerances '{text}'", hint=_hint(key))
        if key in given:
            raise UsageError(f"'{key}' is given twice in the tolerances '{text}'", hint="Give each once.")
        given[key] = _value(key, value)
    return given


def _value(key: str, text: str) -> float | None:
    if text == "off":
        return None
    try:
        value = float(text.removesuffix("%") if DEFAULTS[key].relative else text)
    except ValueError:
        value = math.nan
    if math.isfinite(value) and value >= 0:
        return value
    raise UsageError(f"'{text}' is no tolerance for '{key}'", hint="Allowed: a finite number from 0, or off.")


def _hint(key: str) -> str:
    return f"{nearest(key, DEFAULTS)}Allowed: {', '.join(DEFAULTS)}; as --tolerance sqnr=1,size=5."
