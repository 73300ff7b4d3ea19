"""The straight line: resolve, export, quantize, lower, build, verify, bundle. Read it top to bottom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.plan import Plan
from toolkit.progress import Silent, Watch
from toolkit.stages import Stages

if TYPE_CHECKING:
    from toolkit.reference import Reference
    from toolkit.target import Target
    from toolkit.types import ExportedGraph

__all__ = ["export", "export_each"]


def export(plan: Plan, watch: Watch | None = None) -> tuple[Path, ...]:
    """Take the plan's model to each of its targets and answer the bundles' folders.

    Raises StageError where a stage fails and DriftError where an output moved past its gate; either way
    nothing is left behind but the bundles that were finished before.
    """
    with Stages.open(plan, watch or Silent()) as line:
        reference, exported = line.from_pytorch()
        return tuple(_to_target(line, reference, exported, target) for target in plan.targets)


def export_each(plan: Plan, watch: Watch | None = None) -> dict[Target, Path | Exception]:
    """As `export`, but what one target's run raises is its answer, and the others run all the same."""
    try:
        with Stages.open(plan, watch or Silent()) as line:
            reference, exported = line.from_pytorch()
            return {target: _attempted(line, reference, exported, target) for target in plan.targets}
    except Exception as error:  # what all targets share failed
        return dict.fromkeys(plan.targets, error)


def _to_target(line: Stages, reference: Reference, exported: ExportedGraph, target: Target) -> Path:
    quantized = line.quantize(exported, reference, target)
    lowered = line.lower(quantized, target)
    engine = line.build(lowered, target)
    report = line.verify(reference, engine, target)
    return line.bundle(engine, report, reference, target)


def _attempted(line: Stages, reference: Reference, exported: ExportedGraph, target: Target) -> Path | Exception:
    try:
        return _to_target(line, reference, exported, target)
    except Exception as error:
        return error
