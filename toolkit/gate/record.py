"""What is recorded of a bundle: numbers rounded once, so that what is compared is what is shown and stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from toolkit.bundle.manifest import Manifest
from toolkit.bundle.read import Bundle
from toolkit.compiled import built_engines
from toolkit.document import Frozen
from toolkit.drift.gates import OUTPUT_BOUNDS, TASK_BOUNDS, Bound
from toolkit.drift.report import DriftReport, Metric, OutputDrift, StageDrift, TaskDrift
from toolkit.hashing import data_path
from toolkit.types import EngineStatus

if TYPE_CHECKING:
    from toolkit.inspection import Inspection

__all__ = ["Artefact", "Metrics", "Operators", "Record", "StageRecord", "artefact_of", "name_of", "stages_of"]

Metrics = dict[str, Metric]
"""Metrics by the names of a drift report, as `sqnr_db`; those that were not measured are left out."""

_DECIMALS = {"sqnr_db": 2, "cosine": 7, "accuracy_drop": 2, "top1_agreement": 4, "overlap_at_10": 4}
_SIGNIFICANT = 4


class StageRecord(Frozen):
    """A stage's metrics, by output (a cache as one, `present.*`), and those of the task."""

    outputs: dict[str, Metrics]
    task: Metrics


class Operators(Frozen):
    """What the graph that ships is made of; `fused` are operators of other domains than ONNX's.

    `engines` are what a compiler fused, by architecture: attentions in one kernel and products in int8.
    """

    nodes: int
    linears: int
    quantized: dict[str, int]
    attention: dict[str, int]
    fused: dict[str, int]
    engines: dict[str, dict[str, int]]


class Artefact(Frozen):
    """What ships: the engine's status, the bytes of its graph, weights and engine files, its operators.

    `evaluation` is the SHA-256 of the data that the task was judged on, None where there is none.
    """

    engine: EngineStatus
    bytes: int
    operators: Operators
    evaluation: str | None = None


class Record(Frozen):
    """All that the baseline holds of a subject. `libraries` explain a change; they are not compared."""

    model: str
    target: str
    stages: dict[str, StageRecord]
    artefact: Artefact
    libraries: dict[str, str]


def name_of(manifest: Manifest) -> tuple[str, str]:
    """The model's name and the target, which together are a subject."""
    return manifest.model.name, f"{manifest.target.runtime}-{manifest.target.scheme}"


def stages_of(report: DriftReport) -> dict[str, StageRecord]:
    """The metrics of each stage, in the order in which they ran; an output that could not be compared has none."""
    return {
        stage.stage: StageRecord(
            outputs={output.name: _metrics(output, OUTPUT_BOUNDS) for output in stage.grouped()}, task=_task(stage)
        )
        for stage in report.stages
    }


def artefact_of(bundle: Bundle) -> Artefact:
    """What the bundle ships, from its manifest and its graph; no weight is read."""
    from toolkit.inspection import inspect_graph

    manifest = bundle.manifest
    return Artefact(
        engine=manifest.engine.status,
        bytes=_shipped_bytes(manifest, data_path(bundle.path(manifest.graph)).name),
        operators=_operators(inspect_graph(bundle.path(manifest.graph)), manifest),
        evaluation=manifest.evaluation_data.sha256 if manifest.evaluation_data else None,
    )


def _task(stage: StageDrift) -> Metrics:
    return _metrics(stage.task, TASK_BOUNDS) if stage.task else {}


def _metrics(measured: OutputDrift | TaskDrift, bounds: tuple[Bound, ...]) -> Metrics:
    found = {bound.metric: getattr(measured, bound.metric) for bound in bounds}
    return {name: _rounded(name, value) for name, value in found.items() if value is not None}


def _rounded(name: str, value: float) -> float:
    if not math.isfinite(value):
        return value
    # Adding zero makes a negative zero a plain one.
    return (round(value, _DECIMALS[name]) if name in _DECIMALS else float(f"{value:.{_SIGNIFICANT}g}")) + 0.0


def _shipped_bytes(manifest: Manifest, weights: str) -> int:
    names = {manifest.graph, weights, *manifest.engine.files} & set(manifest.files)
    return sum(manifest.files[name].bytes for name in names)


def _operators(graph: Inspection, manifest: Manifest) -> Operators:
    named = {f"{domain}::{name}": count for domain, ops in graph.operators.items() for name, count in ops.items()}
    standard = {name for name in named if name.startswith("ai.onnx::")}
    return Operators(
        nodes=sum(named.values()),
        linears=graph.linears,
        quantized=_sorted(graph.quantized),
        attention=_sorted(graph.attention),
        fused=_sorted({name: named[name] for name in named.keys() - standard - graph.attention.keys()}),
        engines={
            engine.architecture: {
                name: count
                for name, count in (
                    ("fused_attentions", engine.fused_attentions),
                    ("int8_products", engine.int8_products),
                )
                if count is not None
            }
            for engine in built_engines(manifest.engine.details)
        },
    )


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
