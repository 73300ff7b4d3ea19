"""The two faces of one config: a recipe file as the request that the command's flags make, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from model_zoo import short_names
from toolkit import plugins
from toolkit.data_source import beside
from toolkit.plan import OPTION_FLAGS, Request
from toolkit.recipe.changes import taken
from toolkit.recipe.document import Build, Data, Recipe
from toolkit.recipe.layers import own_recipes
from toolkit.target import Target
from toolkit.types import DEFAULT_OPTIONS, ModelSpec, TargetOptions

__all__ = ["anchored", "recipe_for", "recipe_of", "request_of"]

_SHARED = (
    "model", "task", "revision", "weights", "seed", "targets", "opset", "evaluation", "last_logits", "allow_unfused",
)  # fmt: skip
_OPTIONS = {"architectures": "arch", "seconds": "timeout", "cache": "kv_cache", "provider": "provider_option"}


def request_of(recipe: Recipe, *, folder: Path = Path(), output: Path = Path("bundles"), **flags: Any) -> Request:
    """The request that the recipe stands for, its relative paths taken from `folder`, where its file lies.

    `flags` are fields of the request that the file does not hold, as `offline`.
    """
    values = {name: getattr(recipe, name) for name in _SHARED}
    return Request(
        **values
        | {
            "model": _beside(recipe.model, folder),
            "calibration": _placed(recipe.calibration, folder),
            "evaluation": recipe.evaluation and _placed(recipe.evaluation, folder),
            "dims": dict(recipe.dims),
            "drift_gate": ",".join(f"{key}={_spelled(bound)}" for key, bound in recipe.gate.items()),
            "recipe": recipe.quantization,
            "options": _options(recipe.build),
            "require_engine": recipe.build.require_engine,
            "output": output,
        }
        | flags
    )


def recipe_of(request: Request) -> Recipe:
    """The recipe that stands for the request."""
    given = {
        theirs: getattr(request.options, ours)
        for ours, theirs in _OPTIONS.items()
        if getattr(request.options, ours) != getattr(DEFAULT_OPTIONS, ours)
    }
    memory = request.options.memory and request.options.memory >> 20
    return Recipe(
        **{name: getattr(request, name) for name in _SHARED},
        calibration=request.calibration,
        dims=dict(request.dims),
        gate=_bounds(request.drift_gate),
        quantization=request.recipe,
        build=Build(**given, memory=memory, require_engine=request.require_engine),
    )


def recipe_for(request: Request, target: Target, spec: ModelSpec) -> Recipe:
    """The recipe of one of the request's targets, without what only the others have a use for.

    Its paths are absolute, and a model of the Hub is pinned to the commit that was found.
    """
    changes = taken(request.recipe, own_recipes(request.recipe, target, spec).values())
    options = plugins.find("runtimes", target.runtime).literals.get("OPTIONS", ())
    others = {ours: getattr(DEFAULT_OPTIONS, ours) for ours, flag in OPTION_FLAGS.items() if flag not in options}
    chosen = replace(request.options, **others)
    revision = spec.revision or request.revision
    one = replace(request, targets=(str(target),), recipe=changes, options=chosen, revision=revision)
    return anchored(recipe_of(one))


def _options(build: Build) -> TargetOptions:
    given = {ours: getattr(build, theirs) for ours, theirs in _OPTIONS.items()}
    given["memory"] = build.memory and build.memory << 20
    return TargetOptions(**{name: value for name, value in given.items() if value})


def _bounds(text: str) -> dict[str, Any]:
    """The parts of a `--drift-gate` that was found right; the recipe reads numbers itself."""
    parts = (part.partition("=") for part in text.split(",") if part.strip())
    return {key.strip(): value.strip() for key, _, value in parts}


def _spelled(bound: float | str) -> str:
    """The bound as it is typed: 30, not 30.0."""
    return repr(bound).removesuffix(".0") if isinstance(bound, float) else bound


def anchored(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """The recipe with paths that hold when its file lies in `folder`: absolute, or as given where that is here."""
    if folder is not None and folder.resolve() == Path.cwd():
        return recipe
    fields = {
        name: data.model_copy(update={"source": beside(data.source, Path.cwd())})
        for name in ("calibration", "evaluation")
        if (data := getattr(recipe, name)) is not None
    }
    return recipe.model_copy(update={**fields, "model": _beside(recipe.model, Path.cwd())})


def _placed(data: Data, folder: Path) -> Data:
    """Data from a path beside the file, or as it stands where there is none."""
    if folder == Path():
        return data
    return data.model_copy(update={"source": beside(data.source, folder)})


def _beside(model: str, folder: Path) -> str:
    """A path that exists beside the file, or the text as it stands: a short name, an id, an absolute path."""
    stays = folder == Path() or model in short_names() or not (folder / model).exists()
    return model if stays else str(folder / model)
