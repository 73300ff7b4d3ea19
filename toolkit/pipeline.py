"""The straight line: resolve, export, quantize, lower, build, verify, bundle. Read it top to bottom."""

from __future__ import annotations

from pathlib import Path

from toolkit.plan import Plan
from toolkit.progress import Silent, Watch
from toolkit.stages import Stages

__all__ = ["export"]


def export(plan: Plan, watch: Watch | None = None) -> tuple[Path, ...]:
    """Take the plan's model to each of its targets and answer the bundles' folders.

    Raises StageError where a stage fails and DriftError where an output moved past its gate; either way
    nothing is left behind but the bundles that were finished before.
    """
    with Stages.open(plan, watch or Silent()) as line:
        reference, exported = line.from_pytorch()
        for target in plan.targets:
            quantized = line.quantize(exported, reference, target)
            lowered = line.lower(quantized, target)
            engine = line.build(lowered, target)
            report = line.verify(reference, engine, target)
            line.bundle(engine, report, reference, target)
    return tuple(plan.folder(target) for target in plan.targets)
