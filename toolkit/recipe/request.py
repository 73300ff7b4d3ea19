"""The two faces of one config: a recipe file as the request that the command's flags make, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.data_source import beside
from toolkit.plan import Request
from toolkit.recipe.document import Build, Data, Recipe
from toolkit.types import DEFAULT_OPTIONS, TargetOptions

__all__ = ["recipe_of", "request_of"]

_SHARED = ("model", "revision", "weights", "seed", "targets", "opset", "evaluation", "last_logits", "allow_unfused")
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
            "drift_gate": ",".join(f"{key}={bound}" for key, bound in recipe.gate.items()),
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


def _options(build: Build) -> TargetOptions:
    given = {ours: getattr(build, theirs) for ours, theirs in _OPTIONS.items()}
    given["memory"] = build.memory and build.memory << 20
    return TargetOptions(**{name: value for name, value in given.items() if value})


def _bounds(text: str) -> dict[str, Any]:
    """The parts of a `--drift-gate` that was found right; the recipe reads numbers itself."""
    parts = (part.partition("=") for part in text.split(",") if part.strip())
    return {key.strip(): value.strip() for key, _, value in parts}


def _placed(data: Data, folder: Path) -> Data:
    return data.model_copy(update={"source": beside(data.source, folder)})


def _beside(text: str, folder: Path) -> str:
    """A path that exists beside the file, or the text as it stands: a name, an id, an absolute path."""
    place = folder / text
    return str(place) if text and place.exists() else text
