"""In which order recipes are tried: whole schemes, then each scheme's knobs, then mixes of precisions by module.

Schemes that solve for their weights on data take minutes a trial, so they come when the others are done.
The order depends on nothing but the trials so far, so a search that is taken up again tries the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

from toolkit.recipe.document import Quantization
from toolkit.tune.decide import best_of
from toolkit.tune.result import Objective, Trial
from toolkit.tune.sensitivity import ModuleNoise
from toolkit.types import CalibrationMethod, Gate, QuantConfig

__all__ = ["Laboratory", "knobs", "narrow", "ranked", "search"]

_ORDER = ("int8", "int8-dynamic", "fp8", "int4", "nvfp4", "fp16", "bf16")
_METHODS = get_args(CalibrationMethod)
_SMOOTHING = (0.5, 0.65, 0.8, "off")
_BLOCKS = (16, 32, 64, 128)
_ROUNDING = ("nearest", "gptq", "awq", "hqq")


class Laboratory(Protocol):
    """What tries a recipe, or remembers that it was tried."""

    @property
    def ranges(self) -> Sequence[str]:
        """What may have a scale among activations, as the runtime lists it; none where it lists nothing."""
        ...

    def trial(self, scheme: str, changes: Quantization) -> Trial:
        """Try it. Raises `toolkit.tune.laboratory.Ended` where no more is to be tried."""
        ...

    def recipe(self, scheme: str) -> QuantConfig:
        """The scheme's own recipe for the model."""
        ...

    def noises(self, scheme: str, changes: Quantization) -> Sequence[ModuleNoise]:
        """What each module adds under that recipe; none where that is not known for the scheme."""
        ...


@dataclass(frozen=True, slots=True)
class _Aim:
    """What the search is for: the fp32 trial, the objective and the drift that is allowed."""

    base: Trial
    objective: Objective
    gate: Gate

    @property
    def noise(self) -> float | None:
        """The share of noise that the gate allows, where it bounds SQNR or relative L2."""
        limits = []
        if self.gate.min_sqnr_db is not None:
            limits.append(10 ** (-self.gate.min_sqnr_db / 10))
        if self.gate.max_relative_l2 is not None:
            limits.append(self.gate.max_relative_l2**2)
        return min(limits, default=None)

    def better(self, trials: Iterable[Trial]) -> Trial:
        """The best that pays, else the most accurate, one within the gate first; the earlier of equals."""
        tried = list(trials)
        paying = best_of(tried, self.base, self.objective)
        return paying or max(tried, key=lambda trial: (trial.status == "measured", _sqnr(trial), -trial.index))


def search(laboratory: Laboratory, schemes: Sequence[str], objective: Objective, gate: Gate) -> None:
    """Try what is worth trying of these schemes; the laboratory keeps the results."""
    base = laboratory.trial("fp32", Quantization())
    if base.status != "measured":
        return
    aim = _Aim(base, objective, gate)
    ordered = [scheme for scheme in _ORDER if scheme in schemes]
    slow = [scheme for scheme in ordered if laboratory.recipe(scheme).calibration == "hessian"]
    best: dict[str, Trial] = {}
    for group in ([scheme for scheme in ordered if scheme not in slow], slow):
        best |= _explore(laboratory, group, aim)
    if objective != "speed" and {"int8", "int4"} <= set(best) and best["int8"].status == "measured":
        _tighten(laboratory, best["int8"], aim)


def _explore(laboratory: Laboratory, schemes: Sequence[str], aim: _Aim) -> dict[str, Trial]:
    """Try the schemes as they are, then what can be changed of those with a chance; answers the best of each."""
    whole = {scheme: laboratory.trial(scheme, Quantization()) for scheme in schemes}
    best: dict[str, Trial] = {}
    for scheme, trial in whole.items():
        if _hopeless(trial, aim.objective):
            continue
        best[scheme] = _tune_knobs(laboratory, scheme, trial, aim)
        if best[scheme].status == "drifted":
            _relax(laboratory, scheme, best[scheme], aim)
    return best


def knobs(recipe: QuantConfig, ranges: Sequence[str] = ()) -> Mapping[str, tuple[Any, ...]]:
    """What can be turned of a scheme's recipe beside its own setting, by the recipe file's field.

    `ranges` are those that the runtime takes; they come before SmoothQuant, whose best strength hangs on them.
    """
    found: dict[str, tuple[Any, ...]] = {}
    if recipe.activations == "uint8" and recipe.calibration in _METHODS and (others := _others(ranges, recipe.ranges)):
        found["ranges"] = others
    if recipe.smoothing is not None:
        found["smoothing"] = _others(_SMOOTHING, recipe.smoothing)
    if recipe.weights == "int8" and recipe.calibration in _METHODS:
        found["calibration"] = _others(_METHODS, recipe.calibration)
    if recipe.granularity == "per-block" and recipe.weights in ("int4", "int8"):
        found["block_size"] = _others(_BLOCKS, recipe.block_size)
    if recipe.granularity == "per-block" and recipe.weights == "int4":
        found["rounding"] = _others(_ROUNDING, recipe.rounding)
        found["symmetric"] = (not recipe.symmetric,)
    return found


def ranked(noises: Sequence[ModuleNoise], objective: Objective) -> list[ModuleNoise]:
    """The modules by the noise that they cost for each share of time or bytes that they save, the worst first."""
    weights, products = sum(each.weights for each in noises), sum(each.products for each in noises)

    def saved(each: ModuleNoise) -> float:
        shares = {"speed": each.products / max(products, 1), "size": each.weights / max(weights, 1)}
        return shares[objective] if objective in shares else sum(shares.values())

    return sorted(noises, key=lambda each: (-each.noise / max(saved(each), 1e-12), each.module))


def narrow(holds: Callable[[int], bool], first: int, count: int) -> int | None:
    """The smallest number from 1 below `count` that holds, as if more always held better; None where none does.

    Begins at `first`, doubles while nothing holds, then halves the gap.
    """
    low, high, probe = 0, count, max(1, min(first, count - 1))
    while high - low > 1:
        if holds(probe):
            high = probe
        else:
            low = probe
        probe = min(2 * low, count - 1) if high == count else (low + high) // 2
    return high if high < count else None


def _hopeless(trial: Trial, objective: Objective) -> bool:
    """A scheme that cannot be made here, or that is certainly slower as a whole where speed counts."""
    if trial.status == "failed":
        return True
    return objective != "size" and trial.ratio_high is not None and trial.ratio_high < 1


def _tune_knobs(laboratory: Laboratory, scheme: str, whole: Trial, aim: _Aim) -> Trial:
    """One knob after the other, each at its best before the next is turned."""
    best = whole
    for field, values in knobs(laboratory.recipe(scheme), laboratory.ranges).items():
        changes = Quantization.model_validate(best.quantization)
        tried = [laboratory.trial(scheme, changes.model_copy(update={field: value})) for value in values]
        best = aim.better([best, *(trial for trial in tried if trial.status != "failed")])
    return best


def _relax(laboratory: Laboratory, scheme: str, best: Trial, aim: _Aim) -> None:
    """Leave as few modules as hold the gate in fp32, the costliest of noise for what they save first."""
    changes = Quantization.model_validate(best.quantization)
    order = ranked(laboratory.noises(scheme, changes), aim.objective)
    whole = sum(each.noise for each in order)

    def holds(count: int) -> bool:
        names = tuple(each.module for each in order[:count])
        return laboratory.trial(scheme, changes.model_copy(update={"exclude": names})).status == "measured"

    narrow(holds, _expected(order, aim.noise, _noise_of(best, whole) / whole if whole else 1.0), len(order))


def _tighten(laboratory: Laboratory, best: Trial, aim: _Aim) -> None:
    """Give as many modules of an int8 recipe as hold the gate 4-bit weights, the cheapest of noise first."""
    changes = Quantization.model_validate(best.quantization)
    order = ranked(laboratory.noises("int4", Quantization()), aim.objective)
    count = len(order)
    spare = None if aim.noise is None else aim.noise - _noise_of(best, 0.0)

    def holds(kept: int) -> bool:
        lowered = {each.module: "int4" for each in order[kept:]}
        return laboratory.trial("int8", changes.model_copy(update={"layers": lowered})).status == "measured"

    narrow(holds, _expected(order, spare, 1.0), count)


def _expected(order: Sequence[ModuleNoise], allowed: float | None, scale: float) -> int:
    """How many of the worst must go until the noise of the others is expected to be allowed; 1 where nothing is."""
    if allowed is None:
        return 1
    left = [scale * sum(each.noise for each in order[count:]) for count in range(len(order) + 1)]
    return next((count for count, noise in enumerate(left) if noise <= allowed), len(order))


def _noise_of(trial: Trial, otherwise: float) -> float:
    """Noise over signal as measured, from the trial's SQNR."""
    if trial.sqnr_db is None or not math.isfinite(trial.sqnr_db):
        return otherwise
    return float(10 ** (-trial.sqnr_db / 10))


def _others(values: Sequence[Any], own: Any) -> tuple[Any, ...]:
    return tuple(value for value in values if value != own)


def _sqnr(trial: Trial) -> float:
    return -math.inf if trial.sqnr_db is None else trial.sqnr_db
