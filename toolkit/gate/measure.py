"""Measuring subjects: a recipe through the whole line, a bundle as `toolkit check` does; failures stay with theirs."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.bundle.check import check
from toolkit.bundle.manifest import CHECK, MANIFEST
from toolkit.bundle.read import Bundle, open_bundle, report
from toolkit.bundle.write import library_versions
from toolkit.cli import known_error
from toolkit.drift.report import DriftReport
from toolkit.errors import DriftError, StageError, ToolkitError, UsageError
from toolkit.gate.record import Record, artefact_of, name_of, stages_of
from toolkit.gate.result import Source
from toolkit.plan import Plan, plan
from toolkit.progress import Watch
from toolkit.recipe.file import line_of, read_recipe
from toolkit.recipe.request import request_of
from toolkit.sessions import EngineOrGraph
from toolkit.target import parse_target

if TYPE_CHECKING:
    from toolkit.recipe.document import Recipe

__all__ = ["Choices", "Job", "Measured", "jobs_of", "measure", "sources_of"]


@dataclass(frozen=True, slots=True)
class Choices:
    """How subjects are run: `output` takes the recipes' bundles; `on_cpu` measures bundles' graphs, not engines.

    A `temporary` output's name is told nowhere, so that what is told is the same in every run.
    """

    output: Path
    temporary: bool = False
    on_cpu: bool = False
    offline: bool = False
    trust_remote_code: bool = False
    command: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A recipe with its plan, or with why it cannot be planned, or a bundle; its subjects by name."""

    subjects: dict[str, Source]
    made: Plan | Bundle | ToolkitError


@dataclass(frozen=True, slots=True)
class Measured:
    """A subject as far as it came: the report of what was measured, the record if it is whole, what was raised."""

    subject: str
    source: Source
    report: DriftReport | None = None
    record: Record | None = None
    error: ToolkitError | None = None


def jobs_of(paths: Sequence[Path], choices: Choices) -> list[Job]:
    """Read every recipe and bundle before any work. Raises UsageError for what is neither, or given twice."""
    jobs = [_bundle_job(path) if path.is_dir() else _recipe_job(path, choices) for path in paths]
    seen: dict[str, Source] = {}
    for job in jobs:
        # What cannot be planned has no model's name yet, so its subject's name may be another's by chance.
        for subject, source in job.subjects.items() if not isinstance(job.made, ToolkitError) else ():
            if subject in seen:
                raise UsageError(
                    f"{seen[subject].path} and {source.path} are both {subject}",
                    hint="A model with one target is one subject: gate them in two runs, with two baselines.",
                )
            seen[subject] = source
    return jobs


def measure(job: Job, choices: Choices, watch: Watch) -> Iterator[Measured]:
    """The job's subjects, one by one. What a subject raises is in its answer, and never ends the others."""
    if isinstance(job.made, ToolkitError):
        for subject, source in job.subjects.items():
            yield Measured(subject, source, error=job.made)
    elif isinstance(job.made, Bundle):
        yield _checked(job.made, choices, watch, *next(iter(job.subjects.items())))
    else:
        yield from _exported(job.made, job.subjects, watch)


def sources_of(path: Path) -> list[Source]:
    """The targets of a recipe, or that of a bundle's folder. Raises UsageError where it is neither."""
    if path.is_dir():
        return list(_bundle_job(path).subjects.values())
    return _sources(path, read_recipe(path))


def _sources(path: Path, recipe: Recipe) -> list[Source]:
    return [Source(path, path, line_of(path, "targets", index), text) for index, text in enumerate(recipe.targets)]


def _recipe_job(path: Path, choices: Choices) -> Job:
    recipe = read_recipe(path)
    sources = _sources(path, recipe)
    request = request_of(
        recipe,
        folder=path.parent,
        output=choices.output,
        offline=choices.offline,
        trust_remote_code=choices.trust_remote_code,
        command=choices.command,
    )
    try:
        planned = plan(request)
    except Exception as error:  # one recipe that cannot be planned here must not end the run of the others
        return Job({f"{path.stem}-{source.target}": source for source in sources}, _known(error))
    by_target = {parse_target(source.target): source for source in reversed(sources)}
    return Job({planned.folder(target).name: by_target[target] for target in planned.targets}, planned)


def _bundle_job(path: Path) -> Job:
    bundle = open_bundle(path)
    model, target = name_of(bundle.manifest)
    return Job({f"{model}-{target}": Source(path, path / MANIFEST, 1, target)}, bundle)


def _exported(planned: Plan, subjects: dict[str, Source], watch: Watch) -> Iterator[Measured]:
    from toolkit.pipeline import export_each

    for target, made in export_each(planned, watch).items():
        subject = planned.folder(target).name
        yield _made(subject, subjects[subject], made)


def _made(subject: str, source: Source, made: Path | Exception) -> Measured:
    if isinstance(made, Exception):
        return _failed(subject, source, made)
    try:
        bundle = open_bundle(made)
        return _whole(subject, source, bundle, report(bundle), bundle.manifest.libraries)
    except Exception as error:
        return _failed(subject, source, error)


def _checked(bundle: Bundle, choices: Choices, watch: Watch, subject: str, source: Source) -> Measured:
    choice = EngineOrGraph(bundle, on_cpu=choices.on_cpu)
    try:
        with watch.stage(CHECK, source.target) as row:
            now = check(bundle, choice.open)
            row.said = f"{bundle.folder} on {now.stages[-1].ran_on}"
        stages = _with_last(report(bundle), now, "engine" if choice.executes or choice.interprets else "lower")
        here = {name: version for name, version in library_versions().items() if name.startswith("onnxruntime")}
        return _whole(subject, source, bundle, stages, {**bundle.manifest.libraries, **here})
    except Exception as error:
        return _failed(subject, source, error)


def _with_last(stored: DriftReport, now: DriftReport, name: str) -> DriftReport:
    """The stored report with its last stage, that of what ships, as it is measured now."""
    last = now.stages[-1].model_copy(update={"stage": name})
    return DriftReport.of(stored.reference, [*stored.stages[:-1], last])


def _whole(subject: str, source: Source, bundle: Bundle, drift: DriftReport, libraries: dict[str, str]) -> Measured:
    model, target = name_of(bundle.manifest)
    record = Record(
        model=model,
        target=target,
        stages=stages_of(drift),
        artefact=artefact_of(bundle),
        # The kernel's version changes with every update of a CI machine, and says nothing of the result.
        libraries={name: version for name, version in sorted(libraries.items()) if name != "platform"},
    )
    return Measured(subject, source, drift, record)


def _failed(subject: str, source: Source, error: Exception) -> Measured:
    known = _known(error)
    return Measured(subject, source, known.report if isinstance(known, DriftError) else None, error=known)


def _known(error: Exception) -> ToolkitError:
    known = known_error(error)
    if known is None:
        known = StageError("gate", f"unexpected {type(error).__name__}: {error}", hint="This is a bug of the toolkit.")
        known.__cause__ = error
        traceback.print_exception(error)
    return known
