"""The stages as the line calls them: each does its work, shows a row, and answers one typed value."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from exporters import UNFUSED
from model_zoo import postprocessing, preprocessing
from runtimes import portable_session
from toolkit import plugins
from toolkit.atomic import publish, scratch
from toolkit.bundle.read import is_bundle
from toolkit.drift.gates import SPARED_DB, raise_if_failed
from toolkit.drift.report import DriftReport, StageDrift
from toolkit.drift.table import task_words
from toolkit.graphs import export_module, load_module, quantize_graph
from toolkit.overlap import overlap
from toolkit.plan import Plan, no_engine
from toolkit.progress import Watch
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.request import recipe_for
from toolkit.reference import Reference
from toolkit.target import Target

if TYPE_CHECKING:
    from toolkit.processing import Processing
    from toolkit.types import (
        Calibration,
        Engine,
        ExportedGraph,
        Gate,
        LoweredGraph,
        QuantizedGraph,
        Step,
    )

__all__ = ["Stages"]

_RECIPE = "toolkit export --recipe with this file makes the bundle again."


@dataclass(slots=True)
class Stages:
    """One run of the line: its plan, its working folder, the places reserved for its bundles, and what drifted.

    `drift` keeps the measurement of each graph file, so that a graph shared by several targets runs once.
    """

    plan: Plan
    watch: Watch
    work: Path
    places: Mapping[Target, _Place]
    beside: ThreadPoolExecutor
    calibration: Calibration | None = None
    drift: dict[str, StageDrift] = field(default_factory=dict)
    quantized: dict[str, QuantizedGraph] = field(default_factory=dict)
    measured: set[Target] = field(default_factory=set)
    canonical: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    around: Future[tuple[Processing, Processing]] | None = None

    @classmethod
    @contextmanager
    def open(cls, plan: Plan, watch: Watch) -> Iterator[Self]:
        """Reserve every bundle's place first, so that a second export into it is refused at once."""
        with ExitStack() as stack:
            places = {target: stack.enter_context(_Place(plan.folder(target))) for target in plan.targets}
            work = stack.enter_context(scratch(plan.folder(plan.targets[0])))
            beside = stack.enter_context(ThreadPoolExecutor(1))
            yield cls(plan, watch, work, places, beside)

    def from_pytorch(self) -> tuple[Reference, ExportedGraph]:
        """Load the model, run it as the reference, export it, and let it go."""
        from toolkit.inspection import inspect_graph

        with self.watch.stage("load") as row:
            # Here, so that a bad calibration or evaluation file costs nobody an export.
            held_out = self.plan.evaluate()
            if any(self.plan.recipe(target).measured_by for target in self.plan.targets):
                self._calibrate()
            module = load_module(self.plan, row)
        with self.watch.stage("reference") as row:
            reference = Reference.of(module, self.plan, self.work, held_out)
            row.said = f"{reference.ran_on}{self._shared(reference)}"
        with self.watch.stage("export") as row:
            exported = export_module(
                module, self.plan, reference.golden, self.work / "export", traced=self._begin_around
            )
            # Before any session opens: the reference module and a session's weights need not be in memory together.
            there = weakref.ref(module)
            del module
            if there() is not None:
                gc.collect()
            self.canonical = inspect_graph(exported.path).operators
            row.said = _said(
                exported.steps, self._measure("export", exported.path, reference, self.plan.scheme_gate("fp32"))
            )
        return reference, exported

    def quantize(self, exported: ExportedGraph, reference: Reference, target: Target) -> QuantizedGraph:
        """Write the target's precision into the graph; targets whose scheme has one recipe share the result."""
        name = self._recipe_name(target)
        if name in self.quantized:
            return self.quantized[name]
        with self.watch.stage("quantize", target.scheme) as row:
            graph = quantize_graph(exported, self.plan, target, self.work / name, self._calibrate)
            unchanged = graph.path == exported.path
            gate = self.plan.target_gate(target)
            drift = None if unchanged else self._measure(f"quantize-{name}", graph.path, reference, gate)
            row.said = "nothing to do" if unchanged else _said(graph.steps[len(exported.steps) :], drift)
        self.quantized[name] = graph
        return graph

    def lower(self, quantized: QuantizedGraph, target: Target) -> LoweredGraph:
        """Rewrite the graph into the runtime's own dialect."""
        with self.watch.stage("lower", str(target)) as row:
            folder, options = self.work / str(target), self.plan.request.options
            graph = plugins.runtime(target.runtime).lower(quantized, folder, lambda: self._measure_on(target), options)
            row.said = _said(graph.steps[len(quantized.steps) :])
        return graph

    def build(self, lowered: LoweredGraph, target: Target) -> Engine:
        """Compile the lowered graph, or say that it cannot be done here."""
        with self.watch.stage("build", str(target)) as row:
            engine = plugins.runtime(target.runtime).build(lowered, self.plan.request.options)
            if self.plan.request.require_engine and engine.status == "graph-only":
                raise no_engine(target, engine.reason)
            row.said = f"{engine.status} by {engine.builder} {engine.said}".rstrip()
        return engine

    def verify(self, reference: Reference, engine: Engine, target: Target) -> DriftReport:
        """Measure what ships, beside the stages before it. Raises DriftError where a gate does not hold."""
        with self.watch.stage("verify", str(target)) as row:
            last = reference.engine_drift(engine, target, self.plan)
            before = [self.drift["export"]]
            quantized = f"quantize-{self._recipe_name(target)}"
            if quantized in self.drift:
                before.append(self.drift[quantized])
            report = DriftReport.of(reference.ran_on, [*before, last])
            raise_if_failed(report)
            row.said = f"{_short(last)} on {last.ran_on}"
        return report

    def bundle(self, engine: Engine, report: DriftReport, reference: Reference, target: Target) -> Path:
        """Put everything that ships into one folder, which appears whole or not at all."""
        from toolkit.bundle.write import Contents, write_bundle

        place, recipe, spec = self.places[target], self.plan.recipe(target), self.plan.spec
        with self.watch.stage("bundle", str(target)) as row:
            assets = plugins.family(spec.family).assets(spec)
            before, after = self.around.result() if self.around else self._around()
            contents = Contents(
                spec=spec,
                target=target,
                engine=engine,
                report=report,
                canonical=self.canonical,
                golden=reference.golden,
                golden_reference=reference.golden_outputs,
                evaluation=reference.evaluation,
                evaluation_reference=reference.evaluation_outputs,
                assets=assets,
                preprocessing=before,
                postprocessing=after,
                calibration=self.calibration if recipe.measured_by or target in self.measured else None,
                calibration_method=recipe.measured_by or "ranges",
                allow_unfused=_unfused(engine),
                recipe=dump_recipe(recipe_for(self.plan.request, target, spec), _RECIPE),
            )
            write_bundle(place.folder, contents, command=self.plan.request.command)
            place.publish()
            row.said = str(self.plan.folder(target))
        return self.plan.folder(target)

    def _recipe_name(self, target: Target) -> str:
        """The scheme, numbered where a runtime takes it in another form than the first of the targets."""
        every = [self.plan.recipe(each) for each in self.plan.targets if each.scheme == target.scheme]
        recipes = [recipe for index, recipe in enumerate(every) if recipe not in every[:index]]
        number = recipes.index(self.plan.recipe(target)) + 1
        return target.scheme if number == 1 else f"{target.scheme}-{number}"

    def _begin_around(self) -> None:
        """Not before the module is traced. From then on files and sessions leave Python to others."""
        self.around = self.beside.submit(self._around)

    def _around(self) -> tuple[Processing, Processing]:
        """What stands before and after the model, made once for all targets."""
        spec = self.plan.spec
        assets = plugins.family(spec.family).assets(spec)
        return preprocessing(spec, assets), postprocessing(spec, assets)

    def _shared(self, reference: Reference) -> str:
        """What the row says where samples are in both sets; a set that is not open yet is told of in the bundle."""
        found = overlap(self.calibration, reference.evaluation)
        return f"; WARNING: {found} evaluation samples are calibration samples" if found and found.duplicates else ""

    def _measure(self, stage: str, path: Path, reference: Reference, gate: Gate) -> StageDrift:
        session = portable_session(path)
        drift = reference.drift(stage.partition("-")[0], session, self.plan, gate, spare_above_db=SPARED_DB)
        self.drift[stage] = drift
        raise_if_failed(DriftReport.of(reference.ran_on, [drift]))
        return drift

    def _measure_on(self, target: Target) -> Calibration:
        self.measured.add(target)
        return self._calibrate()

    def _calibrate(self) -> Calibration:
        if self.calibration is None:
            self.calibration = self.plan.calibrate()
        return self.calibration


class _Place:
    """A bundle's folder, locked while the line runs, published when it is whole."""

    def __init__(self, target: Path) -> None:
        self._publishing = publish(target, replace=is_bundle)
        self._published = False

    def __enter__(self) -> Self:
        self.folder = self._publishing.__enter__()
        return self

    def publish(self) -> None:
        """Make the folder appear under its own name."""
        self._published = True
        self._publishing.__exit__(None, None, None)

    def __exit__(self, *error: Any) -> None:
        if not self._published:
            self._publishing.__exit__(*(error if error[0] else (_Abandoned, _Abandoned(), None)))


class _Abandoned(Exception):  # noqa: N818 - it never leaves this file
    """The line ended without filling this place."""


def _unfused(engine: Engine) -> tuple[str, ...]:
    steps = (step for step in engine.graph.steps if step.what == UNFUSED)
    return tuple(name for step in steps for name in step.reason.split(", "))


def _said(steps: tuple[Step, ...], drift: StageDrift | None = None) -> str:
    parts = [f"{step.count} {step.what}" for step in steps if step.count]
    return "; ".join([*parts, *([_short(drift)] if drift else [])])


def _short(drift: StageDrift) -> str:
    worst, task = drift.worst(), drift.task
    parts = [f"SQNR {worst.sqnr_db:.1f} dB" if worst.sqnr_db is not None else "not comparable"]
    if task and task.candidate_accuracy is not None:
        parts.append(f"accuracy {task.candidate_accuracy:.1f}%")
    elif task and (task.greedy or not task.skipped) and (task.metric == "language" or task.top1_agreement is not None):
        parts.append(task_words(task))
    if worst.overlap_at_10 is not None:
        parts.append(f"overlap@10 {worst.overlap_at_10:.3f}")
    return ", ".join(parts)
