"""What a search's trials say: who is on the front, who wins, and whether a lower precision pays on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolkit.drift.gates import describe
from toolkit.tune.result import Objective, Trial
from toolkit.tune.words import byte_words, changes_of, scheme_of, speed_words
from toolkit.types import Gate

__all__ = ["Decision", "best_of", "decide", "front", "pays"]

_TIE = 0.03
"""Who is this close to the best is as good: the most accurate of these wins."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Indices of the trials on the front, that of the winner (None where not even fp32 holds), and why in words."""

    pareto: tuple[int, ...]
    winner: int | None
    verdict: str


def decide(trials: Sequence[Trial], objective: Objective, gate: Gate, *, finished: bool = True) -> Decision:
    """The front, the winner and the verdict of these trials, of which the first is fp32."""
    base = trials[0]
    within = [trial for trial in trials if trial.status == "measured"]
    kept = front([_measures(trial, objective) for trial in within])
    pareto = tuple(within[place].index for place in kept)
    if base.status != "measured":
        return Decision(pareto, None, f"Not even fp32 holds the gate {describe(gate)}: {base.reason}.")
    best = best_of(within, base, objective)
    verdict = _verdict(trials, best or base, objective, gate)
    return Decision(pareto, (best or base).index, verdict if finished else f"{verdict} The search is not finished.")


def front(points: Sequence[tuple[float, ...]]) -> tuple[int, ...]:
    """Places of the points that no other dominates; higher is better along each axis, and equal points all stay."""
    return tuple(place for place, point in enumerate(points) if not any(_dominates(other, point) for other in points))


def pays(trial: Trial, base: Trial, objective: Objective) -> bool:
    """Whether it gains over fp32: faster even in its 10th percentile of rounds, smaller, or both."""
    faster = trial.ratio_low is not None and trial.ratio_low > 1
    smaller = trial.bytes is not None and base.bytes is not None and trial.bytes < base.bytes
    return {"speed": faster, "size": smaller, "both": faster and smaller}[objective]


def best_of(trials: Iterable[Trial], base: Trial, objective: Objective) -> Trial | None:
    """The best of those within the gate that gain over fp32; among near equals the most accurate, then the first.

    The best is who gains most in its 10th percentile of rounds: lucky rounds, as a busy machine gives, do not win.
    """
    paying = [trial for trial in trials if trial.status == "measured" and pays(trial, base, objective)]
    if not paying:
        return None
    best = max(paying, key=lambda trial: _gain(trial, base, objective, trial.ratio_low))
    bound = (1 - _TIE) * _gain(best, base, objective, best.ratio)
    near = [trial for trial in paying if _gain(trial, base, objective, trial.ratio) >= bound]
    return max(near, key=lambda trial: (_sqnr(trial), -trial.index))


def _gain(trial: Trial, base: Trial, objective: Objective, ratio: float | None) -> float:
    """How many times as good as fp32: as fast by that ratio, as small, or the product of both."""
    speed = 1.0 if ratio is None else ratio
    size = (base.bytes or 1) / (trial.bytes or 1)
    return {"speed": speed, "size": size, "both": speed * size}[objective]


def _measures(trial: Trial, objective: Objective) -> tuple[float, ...]:
    speed, size = trial.ratio or 0.0, -float(trial.bytes or 0)
    return {"speed": (speed,), "size": (size,), "both": (speed, size)}[objective] + (_sqnr(trial),)


def _dominates(other: tuple[float, ...], point: tuple[float, ...]) -> bool:
    return other != point and all(theirs >= own for theirs, own in zip(other, point, strict=True))


def _fastest(trials: Sequence[Trial]) -> Trial | None:
    return max((trial for trial in trials if trial.status == "measured"), key=_ratio, default=None)


def _ratio(trial: Trial) -> float:
    return trial.ratio or 0.0


def _sqnr(trial: Trial) -> float:
    return -math.inf if trial.sqnr_db is None else trial.sqnr_db


def _verdict(trials: Sequence[Trial], winner: Trial, objective: Objective, gate: Gate) -> str:
    base = trials[0]
    if winner is not base:
        parts = [speed_words(winner), byte_words(winner, base), f"SQNR {_sqnr(winner):.1f} dB"]
        said = f"{changes_of(winner)} pays here: {', '.join(filter(None, parts))}, within the gate {describe(gate)}."
    else:
        said = f"{_why_not(trials[1:], base, objective, gate)} Stay with fp32."
    return " ".join(filter(None, [said, _about_int8(trials, winner, objective)]))


def _why_not(others: Sequence[Trial], base: Trial, objective: Objective, gate: Gate) -> str:
    within = [trial for trial in others if trial.status == "measured"]
    if within and objective == "size":
        return "Nothing within the gate is smaller than fp32."
    if within:
        fastest = max(within, key=_ratio)
        smaller = f" ({byte_words(fastest, base)})" if objective == "both" else ""
        return f"No lower precision pays here: the fastest within the gate, {changes_of(fastest)}, is " + (
            f"{speed_words(fastest)}{smaller}."
        )
    drifted = [trial for trial in others if trial.status == "drifted"]
    if not drifted:
        return "No lower precision could be measured here."
    nearest = max(drifted, key=_sqnr)
    return (
        f"No lower precision holds the gate {describe(gate)}: "
        f"nearest is {changes_of(nearest)} with SQNR {_sqnr(nearest):.1f} dB."
    )


def _about_int8(trials: Sequence[Trial], winner: Trial, objective: Objective) -> str:
    """Whether int8 pays is what most people ask: said where the winner does not say it already."""
    if scheme_of(winner).startswith("int8") or objective == "size":
        return ""
    tried = [trial for trial in trials if scheme_of(trial).startswith("int8")]
    within = [trial for trial in tried if trial.status == "measured"]
    if within:
        fastest = max(within, key=_ratio)
        if winner is trials[0] and fastest is _fastest(trials[1:]):
            return ""
        verb = "pays less" if pays(fastest, trials[0], objective) else "does not pay"
        return f"int8 {verb}: at best {speed_words(fastest)}."
    drifted = [trial for trial in tried if trial.status == "drifted"]
    if drifted:
        return f"int8 does not hold the gate: at best SQNR {max(map(_sqnr, drifted)):.1f} dB."
    return ""
