"""A record against the baseline's: a sentence for whatever is worse, or better, by more than its tolerance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from toolkit.drift.gates import OUTPUT_BOUNDS, SPARED_DB, TASK_BOUNDS, Bound
from toolkit.gate.record import Artefact, Metrics, Operators, Record, StageRecord
from toolkit.gate.result import CheckName
from toolkit.gate.tolerance import DEFAULTS, FLOAT32_DB, ROUNDING_DB, Tolerances

__all__ = ["Finding", "compare", "library_changes"]

_ENGINE = ("graph-only", "built", "executed")
_EXPLAINING = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "tensorrt", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Finding:
    """A change beyond its tolerance, the check that it belongs to, and which way it went."""

    check: CheckName
    sentence: str
    worse: bool = True


@dataclass(frozen=True, slots=True)
class _Move:
    """One number beyond its tolerance, in words."""

    worse: bool
    said: str


def compare(
    stages: Mapping[str, StageRecord], artefact: Artefact | None, before: Record, tolerances: Tolerances
) -> list[Finding]:
    """All that changed by more than is tolerated. Without an artefact the run ended early: its stages alone count."""
    limits = {key: tolerances.get(key, default.default) for key, default in DEFAULTS.items()}
    findings = list(_stages(stages, before.stages, limits))
    if artefact is not None:
        gone = [stage for stage in before.stages if stage not in stages]
        findings += [Finding("drift", f"stage '{stage}' of the baseline was not measured") for stage in gone]
        findings += _artefact(artefact, before.artefact, limits)
    return findings


def library_changes(now: Mapping[str, str], before: Mapping[str, str]) -> tuple[str, ...]:
    """`torch 2.12 → 2.13` for each library of another version, or that is there in one run only."""
    names = sorted(name for name in {*now, *before} if name.startswith(_EXPLAINING))
    return tuple(
        f"{name} {before.get(name, 'absent')} → {now.get(name, 'absent')}"
        for name in names
        if before.get(name) != now.get(name)
    )


def _stages(now: Mapping[str, StageRecord], before: Mapping[str, StageRecord], limits: Tolerances) -> Iterator[Finding]:
    for stage, record in now.items():
        if stage not in before:
            yield Finding("drift", f"stage '{stage}' is not in the baseline")
            continue
        yield from _outputs(stage, record.outputs, before[stage].outputs, limits)
        if not (_is_spared(record) or _is_spared(before[stage])):
            yield from _metrics("task", f"{stage}, task", record.task, before[stage].task, TASK_BOUNDS, limits)


def _is_spared(record: StageRecord) -> bool:
    """A stage that moved by rounding alone is not judged on held-out data; older baselines have its task."""
    return not record.task and all(metrics.get("sqnr_db", 0.0) >= SPARED_DB for metrics in record.outputs.values())


def _outputs(
    stage: str, now: Mapping[str, Metrics], before: Mapping[str, Metrics], limits: Tolerances
) -> Iterator[Finding]:
    for name in before:
        if name not in now:
            yield Finding("drift", f"{stage}: output '{name}' of the baseline is gone")
    for name, metrics in now.items():
        if name not in before:
            yield Finding("drift", f"{stage}: output '{name}' is not in the baseline")
        else:
            owner = f"{stage}, output '{name}'"
            yield from _metrics("drift", owner, metrics, before[name], OUTPUT_BOUNDS, limits)


def _metrics(
    check: CheckName, owner: str, now: Metrics, before: Metrics, bounds: tuple[Bound, ...], limits: Tolerances
) -> Iterator[Finding]:
    rounding = all(metrics.get("sqnr_db", 0.0) >= ROUNDING_DB for metrics in (now, before))
    moves = []
    for bound in bounds:
        if (bound.metric in now) != (bound.metric in before):
            there = "in the baseline only" if bound.metric in before else "not in the baseline"
            yield Finding(check, f"{owner}: {bound.title} is {there}")
        elif bound.metric in now and not (rounding and bound.key in ("relative_l2", "max_abs")):
            key = "sqnr_fp32" if rounding and bound.key == "sqnr" else bound.key
            moves.append(_move(replace(bound, key=key), now[bound.metric], before[bound.metric], limits))
    yield from _sided(check, owner, moves)


def _sided(check: CheckName, owner: str, moves: Iterable[_Move | None]) -> Iterator[Finding]:
    """One finding of all that is worse, one of all that is better."""
    found = [move for move in moves if move is not None]
    for worse, word in ((True, "worse"), (False, "better")):
        said = [move.said for move in found if move.worse == worse]
        if said:
            yield Finding(check, f"{owner} is {word} than the baseline: {'; '.join(said)}", worse)


def _move(bound: Bound, now: float, before: float, limits: Tolerances) -> _Move | None:
    limit, tolerance = limits[bound.key], DEFAULTS[bound.key]
    # Equal infinities too, whose difference is no number.
    if limit is None or now == before:
        return None
    left, right = (min(value, FLOAT32_DB) if bound.metric == "sqnr_db" else value for value in (now, before))
    # Rounded, since 44.2 - 43.7 is a little more than 0.5 in binary.
    worse = round(right - left if bound.sense == "min" else left - right, 12)
    if abs(worse) <= tolerance.amount(limit, right):
        return None
    values = f"{bound.title} {_number(now)}{bound.unit}, was {_number(before)}{bound.unit}"
    return _Move(worse > 0, f"{values} (tolerance {tolerance.words(limit)})")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.8g}"


def _artefact(now: Artefact, before: Artefact, limits: Tolerances) -> Iterator[Finding]:
    size = Bound("size", "", "", "size", "max", 0, 0, " bytes")
    nodes = Bound("nodes", "", "", "nodes", "max", 0, 0)
    yield from _sided("size", "what ships", [_move(size, now.bytes, before.bytes, limits)])
    yield from _sided("operators", "the graph", [_move(nodes, now.operators.nodes, before.operators.nodes, limits)])
    yield from _operators(now.operators, before.operators)
    if now.evaluation != before.evaluation:
        # Metrics of another set are no comparison, however good they look.
        yield Finding("task", "the evaluation data is not the baseline's: what was measured does not compare")
    if now.engine != before.engine:
        worse = _ENGINE.index(now.engine) < _ENGINE.index(before.engine)
        yield Finding("engine", f"the engine is {now.engine}, in the baseline it is {before.engine}", worse)


def _operators(now: Operators, before: Operators) -> Iterator[Finding]:
    yield from _lost("fused attention nodes", sum(now.attention.values()), sum(before.attention.values()))
    yield from _lost("quantized Linears", sum(now.quantized.values()), sum(before.quantized.values()))
    for name in {**before.fused, **now.fused}:
        yield from _lost(f"fused {name}", now.fused.get(name, 0), before.fused.get(name, 0))
    for architecture, counts in before.engines.items():
        built = now.engines.get(architecture, {})
        for name, count in counts.items():
            yield from _lost(f"{name.replace('_', ' ')} of {architecture}", built.get(name, 0), count)


def _lost(what: str, now: int, before: int) -> Iterator[Finding]:
    if now != before:
        yield Finding("operators", f"the graph has {now} {what}, in the baseline {before}", worse=now < before)
