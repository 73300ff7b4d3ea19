"""Filling a folder with a bundle. Publishing it whole is `toolkit.atomic.publish`'s part."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.bundle.manifest import (
    CHECK,
    MANIFEST,
    CalibrationEntry,
    DriftEntry,
    EngineEntry,
    EvaluationEntry,
    FileEntry,
    Manifest,
    ModelEntry,
    ProcessingEntry,
    TargetEntry,
)
from toolkit.bundle.processing import write_processing
from toolkit.bundle.testdata import EVALUATION, write_evaluation, write_golden
from toolkit.drift.measure import task_output
from toolkit.drift.report import DriftReport, write_report
from toolkit.errors import UsageError
from toolkit.generation.static_cache import has_static_cache
from toolkit.hashing import data_path, file_sha256
from toolkit.overlap import overlap
from toolkit.processing import NOTHING, Processing
from toolkit.target import Target
from toolkit.types import Calibration, Engine, Evaluation, Gate, ModelSpec, Tensors

__all__ = [
    "ASSETS",
    "DRIFT",
    "RECIPE",
    "Contents",
    "engine_entry",
    "engine_mapping",
    "library_versions",
    "write_bundle",
]

ASSETS = "assets"
DRIFT = "drift.json"
RECIPE = "recipe.yaml"

_GENAI_CONFIG = "genai_config.json"
_GENAI_ASSETS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_LIBRARIES = (
    "coremltools",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "openvino",
    "safetensors",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "timm",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into a bundle, beside how it was asked for.

    The `_reference` outputs are those of the eager fp32 model on `golden` and on `evaluation.batches`.
    `assets` are copied; the engine's files are linked, so they must not be changed afterwards. `recipe` is the YAML of
    the recipe that makes the bundle again. What stands before and after the model is written as graphs of its own.
    """

    spec: ModelSpec
    target: Target
    engine: Engine
    report: DriftReport
    golden: Sequence[Tensors]
    golden_reference: Sequence[Tensors]
    evaluation: Evaluation | None = None
    evaluation_reference: Sequence[Tensors] = ()
    assets: Sequence[Path] = ()
    calibration: Calibration | None = None
    calibration_method: str = ""
    allow_unfused: Sequence[str] = ()
    canonical: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    preprocessing: Processing = NOTHING
    postprocessing: Processing = NOTHING


def write_bundle(folder: Path, contents: Contents, *, command: str, gate: Gate | None = None) -> Manifest:
    """Fill the empty `folder` and answer its manifest, which is written last.

    `command` is the exact command line; `gate` is what `check` will apply, by default that of the report's
    last stage. Graph and engine keep their names (weights are found by name) and are linked, not copied,
    where they lie on the same disk. Where the engine's files have a `genai_config.json`, tokenizer files are linked
    beside it. Raises UsageError for an asset that is missing or whose name is taken.
    """
    graph, *_ = _place_engine(folder, contents.engine)
    _place_assets(folder, contents.assets)
    if Path(_GENAI_CONFIG) in contents.engine.files:
        _place_beside_genai(folder)
    write_golden(folder, contents.golden, contents.golden_reference, contents.spec)
    if contents.evaluation is not None:
        output = task_output(contents.spec)
        write_evaluation(folder / EVALUATION, contents.evaluation, contents.evaluation_reference, output)
    write_report(contents.report, folder / DRIFT)
    if contents.recipe:
        (folder / RECIPE).write_text(contents.recipe, encoding="utf-8")
    processing = {
        "preprocess": write_processing(folder, "preprocess", contents.preprocessing),
        "postprocess": write_processing(folder, "postprocess", contents.postprocessing),
    }
    manifest = _manifest(folder, contents, command, gate or contents.report.stages[-1].gate, graph, processing)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def library_versions() -> dict[str, str]:
    """Python, the platform, and each installed library that has a say in the result; imports none of them."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _place_engine(folder: Path, engine: Engine) -> list[str]:
    root = engine.graph.path.parent
    graph = engine.graph.path
    weights = [data_path(graph)] if data_path(graph).exists() else []
    names = [path.relative_to(root).as_posix() for path in (graph, *weights)]
    names += [path.as_posix() for path in engine.files]
    for name in dict.fromkeys(names):
        _link(root / name, folder / name)
    return names


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve(strict=True)
    try:
        os.link(real, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(real, target)


def _place_assets(folder: Path, assets: Sequence[Path]) -> None:
    place = folder / ASSETS
    for asset in assets:
        if not asset.is_file():
            raise UsageError(f"the asset {asset} is not a file")
        if (place / asset.name).exists():
            raise UsageError(f"two assets are called '{asset.name}'")
        place.mkdir(exist_ok=True)
        shutil.copyfile(asset, place / asset.name)


def _place_beside_genai(folder: Path) -> None:
    """onnxruntime-genai reads a tokenizer only from the folder of its configuration; a link costs no space."""
    for name in _GENAI_ASSETS:
        asset = folder / ASSETS / name
        if asset.is_file():
            _link(asset, folder / name)


def _manifest(
    folder: Path,
    contents: Contents,
    command: str,
    gate: Gate,
    graph: str,
    processing: Mapping[str, ProcessingEntry],
) -> Manifest:
    spec, report, evaluation = contents.spec, contents.report, contents.evaluation
    return Manifest(
        toolkit=__version__,
        created=datetime.now(UTC),
        command=command,
        model=_model(spec),
        target=TargetEntry(runtime=contents.target.runtime, scheme=contents.target.scheme),
        dims=dict(spec.dims),
        inputs=spec.inputs,
        outputs=spec.outputs,
        graph=graph,
        engine=engine_entry(contents.engine),
        steps=contents.engine.graph.steps,
        drift=DriftEntry(passed=report.passed, worst={stage.stage: stage.worst() for stage in report.stages}),
        gates={**{stage.stage: stage.gate for stage in report.stages}, CHECK: gate},
        evaluation=evaluation.metric if evaluation else None,
        calibration=_calibration(contents),
        evaluation_data=_evaluation(evaluation),
        overlap=overlap(contents.calibration, evaluation),
        preprocess=processing["preprocess"],
        postprocess=processing["postprocess"],
        allow_unfused=tuple(contents.allow_unfused),
        canonical={domain: dict(counts) for domain, counts in contents.canonical.items()},
        libraries=dict(contents.libraries) or library_versions(),
        files=_files(folder),
    )


def _model(spec: ModelSpec) -> ModelEntry:
    return ModelEntry.model_validate({name: getattr(spec, name) for name in ModelEntry.model_fields})


def engine_entry(engine: Engine) -> EngineEntry:
    """What the manifest holds of an engine."""
    spec = engine.graph.spec
    own = has_static_cache(spec.inputs)
    return EngineEntry(
        status=engine.status,
        builder=engine.builder,
        files=tuple(path.as_posix() for path in engine.files),
        reason=engine.reason,
        details=_plain(engine.details),
        inputs=engine.inputs or (spec.inputs if own else ()),
        outputs=engine.outputs or (spec.outputs if own else ()),
    )


def engine_mapping(engine: Engine) -> dict[str, Any]:
    """What `Runtime.session` opens, before there is a manifest: as `Manifest.engine_mapping` has it."""
    return {**engine_entry(engine).model_dump(mode="json"), "graph": engine.graph.path.name}


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(details), default=str, allow_nan=False))
    return plain


def _calibration(contents: Contents) -> CalibrationEntry | None:
    given = contents.calibration
    if given is None:
        return None
    return CalibrationEntry(
        source=given.source,
        count=given.count,
        method=contents.calibration_method,
        sha256=given.sha256,
        total=given.total,
        seed=given.seed,
    )


def _evaluation(given: Evaluation | None) -> EvaluationEntry | None:
    """None for an evaluation that does not say where it comes from."""
    if given is None or not given.sha256:
        return None
    return EvaluationEntry(
        metric=given.metric,
        source=given.source,
        count=given.count,
        labelled=given.labels is not None,
        sha256=given.sha256,
        total=given.total,
        seed=given.seed,
    )


def _files(folder: Path) -> dict[str, FileEntry]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=file_sha256(path), bytes=path.stat().st_size)
        for path in paths
    }
