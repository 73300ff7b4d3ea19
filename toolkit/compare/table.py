"""A comparison for people: what moved first and what to do, then a row a module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from toolkit.compare.result import Comparison, HeadDrift, ModuleDrift

__all__ = ["COLUMNS", "HEAD_COLUMNS", "head_rows", "module_rows", "stage_rows", "verdict"]

COLUMNS = ("module", "kind", ">SQNR dB", ">added", ">max |ref|", ">max |cand|", ">max |weight|", "")
HEAD_COLUMNS = ("attention", ">worst head", ">divergence", ">entropy, nats", ">same top token")
_LARGEST_HALF = 65504.0
_NEAR = 0.5
"""The share of the largest float16 from which a magnitude is marked: twice as much overflows."""


def verdict(comparison: Comparison) -> str:
    """Which module moved first, which add most noise, and what to type next; a few sentences."""
    measured = [module for module in comparison.modules if module.sqnr_db is not None]
    first = next((module for module in comparison.modules if module.module == comparison.first_bad), None)
    head = f"{comparison.candidate} against {comparison.reference} ({comparison.inputs}): "
    if first is None:
        lowest = min(measured, key=lambda module: module.sqnr_db or 0.0, default=None)
        said = f"; the lowest is {lowest.module} with {_db(lowest.sqnr_db)}" if lowest else ""
        return f"{head}no module of {len(comparison.modules)} is below {comparison.threshold_db:g} dB{said}."
    moved = f"{first.module} ({first.kind}) is the first of {sum(m.bad for m in comparison.modules)} bad modules: "
    moved += first.failure or f"{_db(first.sqnr_db)}, the threshold is {comparison.threshold_db:g} dB"
    return f"{head}{_blame(comparison)}{moved}. {_advice(comparison, first)}"


def module_rows(comparison: Comparison, top: int | None = None) -> Iterator[tuple[str, ...]]:
    """The columns of each module, in the order of execution; of the `top` that add most noise, by that."""
    modules: Iterable[ModuleDrift] = comparison.modules
    if top is not None:
        by_name = {module.module: module for module in comparison.modules}
        modules = [by_name[name] for name in comparison.guilty[:top]]
    for module in modules:
        yield (
            module.module,
            module.kind,
            _number(module.sqnr_db, ".1f"),
            _number(module.added, ".1e"),
            _number(module.reference_absmax, ".4g"),
            _number(module.candidate_absmax, ".4g"),
            _number(module.weight_absmax, ".4g"),
            _mark(module, comparison),
        )


def stage_rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """The SQNR in dB of each module after each stage, those that every stage shows."""
    columns = [{module.module: module.sqnr_db for module in stage.modules} for stage in comparison.stages]
    for module in comparison.modules:
        if any(module.module in column for column in columns):
            levels = [column.get(module.module) for column in columns]
            yield (module.module, *(_number(level, ".1f") for level in levels), _number(module.sqnr_db, ".1f"))


def head_rows(comparison: Comparison, top: int | None = None) -> Iterator[tuple[str, ...]]:
    """Each layer's head whose attention looks elsewhere most; of the `top` such heads, the worst first."""
    worst: dict[str, HeadDrift] = {}
    for head in comparison.attention:
        if head.module not in worst or head.divergence > worst[head.module].divergence:
            worst[head.module] = head
    heads = list(worst.values())
    if top is not None:
        heads = sorted(comparison.attention, key=lambda head: -head.divergence)[:top]
    for head in heads:
        yield (
            head.module,
            str(head.head),
            _number(head.divergence, ".1e"),
            f"{head.reference_entropy:.2f} → {head.candidate_entropy:.2f}",
            f"{100 * head.top1_agreement:.1f}%",
        )


def _blame(comparison: Comparison) -> str:
    """Who adds most noise; told apart from modules that are bad since small noise of many has piled up."""
    if not comparison.guilty:
        return ""
    worst = next(module for module in comparison.modules if module.module == comparison.guilty[0])
    allowed = 10 ** (-comparison.threshold_db / 10)
    alone = "more than the threshold allows" if (worst.added or 0.0) > allowed else "no single module too much"
    return f"most noise is added by {worst.module}, {_share(worst.added)} of its signal's power ({alone}); "


def _advice(comparison: Comparison, first: ModuleDrift) -> str:
    if first.overflow:
        return f"float16 ends at {_LARGEST_HALF:g}: take bf16 or fp32 for this model."
    worst = comparison.guilty[0] if comparison.guilty else first.module
    return f"To keep {worst} in fp32: toolkit export … --recipe exclude={worst}"


def _share(noise: float | None) -> str:
    return f"{100 * noise:.2g}%" if noise is not None and math.isfinite(noise) else "more than all"


def _mark(module: ModuleDrift, comparison: Comparison) -> str:
    marks = []
    if module.module == comparison.first_bad:
        marks.append("FIRST BAD")
    elif module.bad:
        marks.append("bad")
    if comparison.guilty and module.module == comparison.guilty[0] and comparison.first_bad:
        marks.append("adds most")
    if module.overflow:
        marks.append("OVERFLOW")
    elif max(module.reference_absmax or 0.0, module.candidate_absmax or 0.0) > _NEAR * _LARGEST_HALF:
        marks.append("near float16's end")
    return ", ".join([*marks, *filter(None, [module.failure])])


def _db(level: float | None) -> str:
    return f"SQNR {_number(level, '.1f')} dB"


def _number(value: float | None, spelled: str) -> str:
    return "-" if value is None else format(value, spelled)
