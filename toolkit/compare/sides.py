"""What the two sides of a comparison are: a reference, a bundle, a recipe or a graph, each at one of its stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from toolkit.bundle.manifest import MANIFEST, Manifest
from toolkit.bundle.read import Bundle, golden, open_bundle
from toolkit.bundle.write import RECIPE
from toolkit.compare.line import Line
from toolkit.errors import ToolkitError, UnsupportedError, UsageError
from toolkit.plan import Plan, Request, plan
from toolkit.progress import Watch
from toolkit.recipe.document import Data
from toolkit.recipe.file import read_recipe
from toolkit.recipe.request import request_of
from toolkit.target import Target
from toolkit.types import Gate, ModelSpec, Tensors

__all__ = ["REFERENCE", "STAGES", "GraphFile", "Side", "open_side"]

REFERENCE = "reference"
STAGES = ("export", "quantize", "lower", "engine")

_YAML = (".yaml", ".yml")
_CPU_RUNTIME = "ort-cpu"
_TAKES = (
    "Give reference, a bundle's folder, a recipe (.yaml) or a graph (.onnx); @export, @quantize, @lower or @engine "
)
"""How every refusal begins to say what is taken."""


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph, and what to say of where it comes from."""

    path: Path
    said: str = ""


@dataclass(frozen=True, slots=True)
class Side:
    """One side: `graph` makes that of a stage where it is not there, `load` the PyTorch model, `inputs` reads them.

    `stage` is the one that was asked for, and None for a graph file, which has no others. `assets` is the folder with
    the tokenizer or the image processor, `line` what the side is made by, where it is not just a graph.
    """

    label: str
    stage: str | None
    graph: Callable[[str], GraphFile]
    load: Callable[[], Any] | None = None
    inputs: Callable[[], Sequence[Tensors]] | None = None
    spec: ModelSpec | None = None
    gate: Gate = field(default_factory=Gate)
    assets: Path | None = None
    line: Callable[[], Line] | None = None

    def own_graph(self) -> GraphFile:
        """The graph of the side's own stage."""
        return self.graph(self.stage or STAGES[-1])

    def module(self) -> Any:
        """The fp32 PyTorch model. Raises UnsupportedError where there is none, or it cannot be loaded here."""
        if self.load is None:
            raise UnsupportedError(
                f"{self.label} does not say which PyTorch model it was made from",
                hint="Compare it with a bundle or a recipe of the model instead of with reference.",
            )
        try:
            return self.load()
        except ToolkitError as error:
            raise UnsupportedError(
                f"the PyTorch model of {self.label} cannot be loaded here: {error}",
                hint=f"Compare two graphs instead, as {self.label} with a bundle of fp32. {error.hint}".rstrip(),
            ) from error


def open_side(text: str, folder: Path, watch: Watch, target: str = "") -> Side:
    """What the text names; what has to be made goes to `folder`. Raises UsageError for what is none of these."""
    name, stage = _split(text)
    path = Path(name)
    if path.suffix in _YAML and path.is_file():
        return _of_recipe(text, path, stage, folder, watch, target)
    if (path / MANIFEST).is_file():
        return _of_bundle(text, path, stage, folder, watch)
    if path.is_file():
        if stage is not None:
            raise UsageError(f"{path} is a graph and has no stage '{stage}'", hint="Leave out the part behind @.")
        return Side(text, None, lambda _: GraphFile(path))
    there = "is no bundle: it has no manifest.json" if path.is_dir() else "is not there"
    raise UsageError(f"{name} {there}", hint=f"{_TAKES}may follow.")


def _split(text: str) -> tuple[str, str | None]:
    name, at, stage = text.rpartition("@")
    if not at or Path(text).exists():
        return text, None
    if stage not in STAGES:
        raise UsageError(f"'{stage}' is no stage of {name}", hint=f"Stages: {', '.join(STAGES)}.")
    return name, stage


def _of_recipe(text: str, path: Path, stage: str | None, folder: Path, watch: Watch, target: str) -> Side:
    request = request_of(read_recipe(path), folder=path.parent)
    if target:
        request = replace(request, targets=(target,))
    if len(request.targets) > 1:
        raise UsageError(
            f"{path} has {len(request.targets)} targets: {', '.join(request.targets)}",
            hint=f"Say which one to compare, as --target {request.targets[0]}.",
        )
    made = plan(request)
    line = Line(made, made.targets[0], folder, watch)
    return _of_line(text, stage or STAGES[-1], line, inputs=lambda: line.golden)


def _of_line(text: str, stage: str, line: Line, inputs: Callable[[], Sequence[Tensors]]) -> Side:
    def graph(which: str) -> GraphFile:
        if which == "export":
            return GraphFile(line.exported.path)
        if which == "quantize":
            return GraphFile(line.quantized.path)
        return _shipped(line.lowered.path, line.target.runtime, which)

    spec, source = line.plan.spec, Path(line.plan.spec.source)
    gate = line.plan.target_gate(line.target)
    assets = source if source.is_dir() else None
    return Side(text, stage, graph, line.load, inputs, spec, gate, assets, lambda: line)


def _of_bundle(text: str, path: Path, stage: str | None, folder: Path, watch: Watch) -> Side:
    bundle = open_bundle(path)
    manifest = bundle.manifest
    target = Target(manifest.target.runtime, manifest.target.scheme)

    @cache
    def line() -> Line:
        return Line(_plan_of(bundle, target), target, folder, watch)

    def graph(which: str) -> GraphFile:
        if which in ("lower", "engine"):
            return _shipped(bundle.path(manifest.graph), target.runtime, which)
        return GraphFile(line().exported.path if which == "export" else line().quantized.path)

    return Side(
        text,
        stage or STAGES[-1],
        graph,
        lambda: line().load(),
        lambda: golden(bundle)[0],
        manifest.spec(),
        manifest.check_gate,
        bundle.assets,
        line,
    )


def _shipped(path: Path, runtime: str, stage: str) -> GraphFile:
    shows = runtime == _CPU_RUNTIME or stage != "engine"
    return GraphFile(path, "" if shows else "the graph of the engine, which shows no inner tensors")


def _plan_of(bundle: Bundle, target: Target) -> Plan:
    """How the bundle was made: by the recipe in it, else by its manifest where that says everything."""
    manifest = bundle.manifest
    recipe = bundle.folder / RECIPE
    if RECIPE in manifest.files and recipe.is_file():
        request = request_of(read_recipe(recipe), folder=bundle.folder)
        return Plan(replace(request, targets=(str(target),)), manifest.spec(), (target,))
    if "--recipe" in manifest.command:
        raise UnsupportedError(
            f"{bundle.folder} was made with --recipe and has no {RECIPE}, so its stages cannot be made again",
            hint="Compare what ships, without @STAGE; or export it again, or give the recipe file itself.",
        )
    return Plan(_request_of(manifest, target), manifest.spec(), (target,))


def _request_of(manifest: Manifest, target: Target) -> Request:
    calibration = manifest.calibration
    return Request(
        manifest.model.source,
        (str(target),),
        revision=manifest.model.revision,
        weights=manifest.model.weights,
        seed=manifest.model.seed,
        calibration=Data(count=calibration.count if calibration else None),
        dims=manifest.dims,
        allow_unfused=bool(manifest.allow_unfused),
    )
