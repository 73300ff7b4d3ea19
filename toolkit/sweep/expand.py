"""From files to runs: the product that a sweep file spans, and the targets of recipe files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from toolkit.errors import UsageError
from toolkit.recipe.document import VERSION as RECIPE_VERSION
from toolkit.recipe.document import Recipe
from toolkit.sweep.document import VERSION, Exclusion, Sweep, Variant
from toolkit.sweep.run import Run
from toolkit.yaml_document import YamlDocument

__all__ = ["runs_of"]

_HINT = "docs/sweep.md shows a sweep file; toolkit sweep FILE --dry-run lists its runs."


def runs_of(paths: Sequence[Path]) -> tuple[Run, ...]:
    """The runs of these sweep and recipe files, in their order; a file with a `model` of its own is a recipe.

    Raises UsageError for a file that is not right, with line and column, and for a run that is named twice.
    """
    runs = [run for path in paths for run in _runs(path)]
    seen: dict[str, Run] = {}
    for run in runs:
        if other := seen.get(run.key):
            raise UsageError(
                f"'{other.variant}' and '{run.variant}' are the same run of {run.model} for {run.target}",
                hint="Leave one of them out, or exclude one.",
            )
        seen[run.key] = run
    return tuple(runs)


def _runs(path: Path) -> Iterator[Run]:
    document = YamlDocument.load(path, "sweep or recipe", _HINT)
    if "model" in document.data:
        recipe = document.parse(Recipe, RECIPE_VERSION)
        yield from (Run.of(recipe, target, path.stem, path.parent) for target in _once(recipe.targets))
    else:
        yield from _product(document, document.parse(Sweep, VERSION))


def _product(document: YamlDocument, sweep: Sweep) -> Iterator[Run]:
    names = [variant.name for variant in sweep.recipes]
    if twice := next((index for index, name in enumerate(names) if name in names[:index]), None):
        raise UsageError(
            f"{document.where('recipes', twice)}: two recipes are called '{names[twice]}'", hint="Rename one."
        )
    whole = [
        (recipe, target, variant.name)
        for recipe, variant in _combined(document, sweep)
        for target in _once(recipe.targets)
    ]
    unused = dict(enumerate(sweep.exclude))
    for recipe, target, variant in whole:
        out = [index for index, each in enumerate(sweep.exclude) if _matches(each, recipe.model, target, variant)]
        for index in out:
            unused.pop(index, None)
        if not out:
            yield Run.of(recipe, target, variant, document.path.parent)
    if unused:
        raise UsageError(f"{document.where('exclude', min(unused))}: leaves out no run", hint="Mend its patterns.")


def _combined(document: YamlDocument, sweep: Sweep) -> Iterator[tuple[Recipe, Variant]]:
    shared = {"targets": list(sweep.targets)} if sweep.targets else {}
    for model in sweep.models:
        for index, variant in enumerate(sweep.recipes):
            sections = (_given(sweep.base), shared, _given(model), _given(variant))
            merged = _merged(sections)
            merged.pop("name", None)
            if not merged.get("targets"):
                where = document.where("recipes", index)
                raise UsageError(f"{where}: no targets for {model.model}", hint="List some under targets.")
            yield Recipe.model_validate(merged), variant


def _given(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _merged(sections: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Later ones over earlier ones, and first: of the patterns of `layers` the first match counts."""
    result: dict[str, Any] = {}
    for section in sections:
        over = {
            key: _merged([result[key], value]) if isinstance(value, dict) and key in result else value
            for key, value in section.items()
        }
        result = over | {key: value for key, value in result.items() if key not in over}
    return result


def _once(targets: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(targets))


def _matches(exclusion: Exclusion, model: str, target: str, variant: str) -> bool:
    pairs = ((model, exclusion.model), (target, exclusion.target), (variant, exclusion.recipe))
    return all(fnmatchcase(text, pattern) for text, pattern in pairs)
