"""Where in a recipe file an error lies that is found later: an unknown target, a model that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import UnsupportedError, UsageError
from toolkit.recipe.document import Recipe
from toolkit.recipe.file import place_of

__all__ = ["naming"]

Location = tuple[str | int, ...]

_OPTIONS = {"timeout": "build-timeout", "memory": "build-memory"}
"""The options of the command that the file's section `build` calls otherwise."""


@contextmanager
def naming(path: Path, recipe: Recipe) -> Iterator[None]:
    """Let errors of the block begin with file, line and column, where they name something that the file says."""
    try:
        yield
    except (UsageError, UnsupportedError) as error:
        if location := _meant(str(error), recipe):
            error.args = (f"{place_of(path, location)}: {error}",)
        raise


_FIELDS = (("--last-logits", "last-logits"), ("opset", "opset"))


def _meant(message: str, recipe: Recipe) -> Location | None:
    """The part of the file that the message names first."""
    found = [
        (match.start(), location)
        for name, location in _names(recipe)
        if (match := re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", message))
    ]
    return min(found, key=lambda each: each[0])[1] if found else None


def _names(recipe: Recipe) -> Iterator[tuple[str, Location]]:
    """What a message calls each part of the file."""
    values = recipe.model_dump(by_alias=True, exclude_defaults=True)
    yield from ((target, ("targets", index)) for index, target in enumerate(recipe.targets))
    changes = recipe.quantization
    yield from ((f"'{pattern}'", ("quantization", "layers", pattern)) for pattern in changes.layers)
    yield from ((f"'{pattern}'", ("quantization", "exclude", index)) for index, pattern in enumerate(changes.exclude))
    for section in ("dims", "gate", "quantization"):
        yield from ((key, (section, key)) for key in values.get(section, {}))
    for key in values.get("build", {}):
        yield f"--{_OPTIONS.get(key, key)}", ("build", key)
    for section in ("calibration", "evaluation"):
        if source := (values.get(section) or {}).get("source"):
            yield source, (section, "source")
    yield from ((name, (key,)) for name, key in _FIELDS if key in values)
    if recipe.task:
        yield recipe.task, ("task",)
    yield recipe.model, ("model",)
