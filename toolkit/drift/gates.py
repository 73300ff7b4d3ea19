"""Gates: the bounds that drift must keep, how to write them on the command line, what breaking one says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from toolkit.drift.report import DriftReport, OutputDrift, StageDrift, TaskDrift
from toolkit.errors import DriftError, UsageError
from toolkit.plugins import nearest
from toolkit.types import Gate

__all__ = [
    "OUTPUT_BOUNDS",
    "SPARED_DB",
    "TASK_BOUNDS",
    "Bound",
    "check",
    "describe",
    "judge",
    "parse_gate",
    "raise_if_failed",
]


@dataclass(frozen=True, slots=True)
class Bound:
    """`key` on the command line, `bound` in Gate, `metric` in the report; `lowest` to `highest` is sane."""

    key: str
    bound: str
    metric: str
    title: str
    sense: Literal["min", "max"]
    lowest: float
    highest: float
    unit: str = ""


OUTPUT_BOUNDS = (
    Bound("sqnr", "min_sqnr_db", "sqnr_db", "SQNR", "min", -math.inf, math.inf, " dB"),
    Bound("cosine", "min_cosine", "cosine", "cosine", "min", -1, 1),
    Bound("relative_l2", "max_relative_l2", "relative_l2", "relative L2", "max", 0, math.inf),
    Bound("max_abs", "max_abs", "max_abs", "max abs", "max", 0, math.inf),
)
TASK_BOUNDS = (
    Bound("accuracy_drop", "max_accuracy_drop", "accuracy_drop", "accuracy drop", "max", 0, 100, " points"),
    Bound("top1", "min_top1_agreement", "top1_agreement", "top-1 agreement", "min", 0, 1),
    Bound("perplexity_ratio", "max_perplexity_ratio", "perplexity_ratio", "perplexity ratio", "max", 0, math.inf),
    Bound("kl", "max_kl", "kl", "KL", "max", 0, math.inf, " nats"),
    Bound("overlap", "min_overlap_at_10", "overlap_at_10", "overlap@10", "min", 0, 1),
)
SPARED_DB = 90.0
"""A stage before the engine that is better is not judged on held-out data: it moved by rounding alone. fp32 sums in
another order leave 110 to 135 dB, and one operator in half precision less than 82 (docs/gates.md)."""
_ALL = {bound.key: bound for bound in (*OUTPUT_BOUNDS, *TASK_BOUNDS)}


def parse_gate(text: str, base: Gate) -> Gate:
    """`sqnr=30,cosine=0.99,max_abs=off` over `base`: what is named replaces the bound, the rest stays.

    A key may be written with hyphens, as `perplexity-ratio=1.05`.
    Raises UsageError for an unknown or repeated key, and for a value that is no number or out of its range.
    """
    bounds: dict[str, float | None] = {}
    for part in text.split(","):
        word, equals, value = (piece.strip() for piece in part.partition("="))
        key = word.replace("-", "_")
        if not equals or key not in _ALL:
            raise UsageError(f"cannot read '{part.strip()}' in the drift gate '{text}'", hint=_hint(key))
        bound = _ALL[key]
        if bound.bound in bounds:
            raise UsageError(f"'{key}' is given twice in the drift gate '{text}'", hint="Give each bound once.")
        bounds[bound.bound] = _value(bound, value)
    return replace(base, **bounds)


def check(stage: StageDrift, gate: Gate) -> list[str]:
    """A sentence for each failure: an output that could not be compared, or a metric beyond its bound.

    A bound on a task metric that the stage does not have is not checked; `stage.failures` is not looked at. All the
    outputs of a cache share their sentences, which are those of the worst.
    """
    sentences: list[str] = []
    for output in stage.grouped():
        sentences += _broken(f"output '{output.name}'", output, gate)
    if stage.task:
        sentences += _broken(f"{stage.task.metric} of '{stage.task.output}'", stage.task, gate)
    return sentences


def judge(stage: StageDrift, gate: Gate) -> StageDrift:
    """The same measurement, held to `gate`."""
    failures = tuple(check(stage, gate))
    return StageDrift(
        stage=stage.stage,
        ran_on=stage.ran_on,
        outputs=stage.outputs,
        task=stage.task,
        gate=gate,
        failures=failures,
        passed=not failures,
    )


def describe(gate: Gate) -> str:
    """The gate as `--drift-gate` takes it, as `sqnr=30,cosine=0.99`; empty when nothing is bounded."""
    given = ((key, getattr(gate, bound.bound)) for key, bound in _ALL.items())
    return ",".join(f"{key}={value:g}" for key, value in given if value is not None)


def raise_if_failed(report: DriftReport) -> None:
    """Raise DriftError naming the first stage that moved and every bound it broke; none when all passed."""
    stage = next((stage for stage in report.stages if not stage.passed), None)
    if stage is None:
        return
    broken = "; ".join(stage.failures)
    raise DriftError(
        f"stage '{stage.stage}' moved too far from the reference ({report.reference}): {broken}",
        hint=_advice(stage),
        report=report,
    )


def _broken(owner: str, measured: OutputDrift | TaskDrift, gate: Gate) -> Iterator[str]:
    if measured.failure:
        yield f"{owner} {measured.failure}"
        return
    for bound in OUTPUT_BOUNDS if isinstance(measured, OutputDrift) else TASK_BOUNDS:
        value, limit = getattr(measured, bound.metric), getattr(gate, bound.bound)
        if value is None or limit is None or _holds(bound, value, limit):
            continue
        side = "below" if bound.sense == "min" else "above"
        shown, allowed = _distinct(value, limit)
        yield f"{owner}: {bound.title} {shown}{bound.unit} is {side} the gate's {allowed}{bound.unit}"


def _holds(bound: Bound, value: float, limit: float) -> bool:
    return value >= limit if bound.sense == "min" else value <= limit


def _distinct(value: float, limit: float) -> tuple[str, str]:
    short = f"{value:.4g}", f"{limit:.4g}"
    return short if short[0] != short[1] else (repr(value), repr(limit))


def _value(bound: Bound, text: str) -> float | None:
    if text == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value) and bound.lowest <= value <= bound.highest:
        return value
    span = "a finite number" if math.isinf(bound.lowest) else f"from {bound.lowest:g} to {bound.highest:g}"
    raise UsageError(f"'{text}' is no value for '{bound.key}' in the drift gate", hint=f"Allowed: {span}, or off.")


def _hint(key: str) -> str:
    return f"{nearest(key, _ALL)}Allowed: {', '.join(_ALL)}; as --drift-gate sqnr=30,cosine=0.99."


_COMPARE = (
    "To see which layer moved, write the recipe (export … --write-recipe RECIPE.yaml) and run "
    "toolkit compare reference RECIPE.yaml."
)


def _advice(stage: StageDrift) -> str:
    if any(output.failure for output in stage.outputs) or (stage.task and stage.task.failure):
        return "The outputs cannot be compared, so no gate lets this pass. Look at the weights and this stage."
    allow = f"allow more on purpose (--drift-gate; now {describe(stage.gate)})"
    if stage.stage == "export":
        return f"No precision was lowered yet: look at the model's own numerics, or {allow}. {_COMPARE}"
    return f"Calibrate on inputs like yours (--calibration DIR), take a wider scheme (fp16), or {allow}. {_COMPARE}"
