"""What a command was given as one request: a recipe file, changes in line over it, and flags over both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.errors import UsageError
from toolkit.plan import Plan, Request, plan
from toolkit.recipe.changes import given_keys, parse_changes
from toolkit.recipe.document import Data, Quantization
from toolkit.recipe.file import read_recipe
from toolkit.recipe.places import naming
from toolkit.recipe.request import request_of

__all__ = ["located", "plan_of"]


def located(recipes: Sequence[str]) -> AbstractContextManager[None]:
    """Errors of the block name the line of the recipe file among `recipes` that they speak of, where there is one."""
    path = next((Path(text) for text in recipes if _is_file(text)), None)
    return naming(path, read_recipe(path)) if path else nullcontext()


def plan_of(recipes: Sequence[str], given: Mapping[str, Any]) -> Plan:
    """The plan for what `--recipe` names, at most one file and changes in line, under the flags that were given.

    `given` holds fields of the request; in it `options` holds fields of TargetOptions, and `calibration` and
    `evaluation` those of Data. Mappings, as dimensions, bounds and layers, are merged by their keys; all else takes the
    file's place.
    Raises as `plan` does; an error in what the file says names its line.
    """
    files = [text for text in recipes if _is_file(text)]
    if len(files) > 1:
        raise UsageError(f"--recipe names several files: {', '.join(files)}", hint="Give one, and changes over it.")
    changes = parse_changes(",".join(text for text in recipes if text not in files))
    path = Path(files[0]) if files else None
    recipe = read_recipe(path) if path else None
    base = request_of(recipe, folder=path.parent) if recipe and path else _bare(given)
    request = _over(replace(base, recipe=_merged(base.recipe, changes)), given)
    with located(files):
        return plan(request)


def _is_file(text: str) -> bool:
    return text.lower().endswith((".yaml", ".yml")) or (bool(text.strip()) and Path(text).exists())


def _bare(given: Mapping[str, Any]) -> Request:
    missing = [f"--{name.removesuffix('s')}" for name in ("model", "targets") if name not in given]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} not given",
            hint="Give --model and --target, or --recipe FILE.yaml, which names both.",
        )
    return Request(model=given["model"], targets=given["targets"])


def _merged(base: Quantization, changes: Quantization) -> Quantization:
    """The changes over the file's; of layers those in line come first, since the first match counts."""
    fields = [key.replace("-", "_") for key in given_keys(changes)]
    layers = {**changes.layers, **{key: value for key, value in base.layers.items() if key not in changes.layers}}
    return base.model_copy(update={**{name: getattr(changes, name) for name in fields}, "layers": layers})


def _over(base: Request, given: Mapping[str, Any]) -> Request:
    fields = dict(given)
    options = dict(fields.pop("options", {}))
    if "provider" in options:
        options["provider"] = {**base.options.provider, **options["provider"]}
    if "dims" in fields:
        fields["dims"] = {**base.dims, **fields["dims"]}
    for section in ("calibration", "evaluation"):
        if section in fields:
            fields[section] = (getattr(base, section) or Data()).model_copy(update=fields[section])
    if "drift_gate" in fields:
        fields["drift_gate"] = _gate(base.drift_gate, fields["drift_gate"])
    return replace(base, **fields, options=replace(base.options, **options))


def _gate(base: str, over: str) -> str:
    """The bounds of both, without those of the base that are given anew."""
    anew = {part.partition("=")[0].strip() for part in over.split(",")}
    kept = [part for part in base.split(",") if part.partition("=")[0].strip() not in anew]
    return ",".join(part for part in (*kept, over) if part)
