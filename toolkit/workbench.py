"""One export, many attempts: what comparisons and searches work on, with the line's own stages and no bundle."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from runtimes import portable_session
from toolkit import plugins
from toolkit.graphs import export_module, load_module, quantize_graph
from toolkit.progress import Watch
from toolkit.reference import Reference

if TYPE_CHECKING:
    from toolkit.drift.report import StageDrift
    from toolkit.plan import Plan
    from toolkit.recipe.document import Quantization
    from toolkit.target import Target
    from toolkit.types import Calibration, Engine, ExportedGraph, Gate, LoweredGraph, QuantizedGraph

__all__ = ["Attempt", "Workbench"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way of quantizing the model, taken to its target: the graph of each stage, the engine, and its drift.

    `drift` is held to the target's gate and may say that it did not pass. `folder` is the caller's to remove.
    """

    target: Target
    quantization: Quantization
    quantized: QuantizedGraph
    lowered: LoweredGraph
    engine: Engine
    drift: StageDrift
    folder: Path


@dataclass
class Workbench:
    """A model that was exported once: its plan, its reference, its canonical graph, and room to work in."""

    plan: Plan
    reference: Reference
    exported: ExportedGraph
    work: Path
    _count: int = 0

    @classmethod
    @contextmanager
    def open(cls, plan: Plan, watch: Watch, folder: Path | None = None) -> Iterator[Self]:
        """Load, run and export the model; everything made goes with the block. `folder` is where, the system's own by
        default. Raises as the line's own stages do.
        """
        with tempfile.TemporaryDirectory(prefix="toolkit-", dir=folder) as place:
            work = Path(place)
            with watch.stage("load") as row:
                held_out = plan.evaluate()
                module = load_module(plan, row)
            with watch.stage("reference") as row:
                reference = Reference.of(module, plan, work, held_out)
                row.said = reference.ran_on
            with watch.stage("export"):
                exported = export_module(module, plan, reference.golden, work / "export")
            del module
            gc.collect()
            yield cls(plan, reference, exported, work)

    @cached_property
    def calibration(self) -> Calibration:
        """What activations are measured on, opened when it is first asked for."""
        return self.plan.calibrate()

    def attempt(self, target: Target, quantization: Quantization) -> Attempt:
        """Take the canonical graph to the target with these changes to its scheme's recipe, and measure the result."""
        self._count += 1
        folder = self.work / f"attempt-{self._count}"
        plan = replace(self.plan, request=replace(self.plan.request, recipe=quantization))
        runtime, options = plugins.runtime(target.runtime), plan.request.options
        quantized = quantize_graph(self.exported, plan, target, folder / "quantize", lambda: self.calibration)
        lowered = runtime.lower(quantized, folder / "lower", lambda: self.calibration, options)
        engine = runtime.build(lowered, options)
        drift = self.reference.engine_drift(engine, target, plan)
        return Attempt(target, quantization, quantized, lowered, engine, drift, folder)

    def quantized_drift(self, attempt: Attempt, gate: Gate) -> StageDrift | None:
        """How far the attempt's graph was before it was lowered, held to `gate`: an export holds each stage to it.

        None where the scheme changed nothing.
        """
        path = attempt.quantized.path
        if path == self.exported.path:
            return None
        return self.reference.drift("quantize", portable_session(path), self.plan, gate)
