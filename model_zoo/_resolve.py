"""From what the user typed after `--model` to a spec. Imports no torch and no transformers at module level."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from model_zoo import _gguf, _source
from toolkit import plugins
from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import Dim, ModelRequest, ModelSpec

__all__ = ["needs_no_files", "resolve", "short_names"]

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_BUILT_IN = "data/"
_TOWERS = (("vision", "image-embedding"), ("encoder", "text-embedding"))


def resolve(
    model: str,
    *,
    revision: str | None = None,
    weights: Literal["pretrained", "random"] = "pretrained",
    seed: int = 0,
    dims: Mapping[str, Dim] | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    last_logits: bool = False,
    task: str = "",
) -> ModelSpec:
    """Find the model: `module:factory`, a short name, a folder, a `.gguf` file, or a Hub id; its family describes it.

    Reads configuration files, never weights (a factory is called, since its module is all there is to read). Where the
    Hub cannot be reached, a short name stands for the model of that name that `scripts/fetch_models.py` brought.
    Raises UsageError for a model that is not there, UnsupportedError for one of a kind not yet taken.
    """
    spec = _resolved(
        model,
        revision,
        {
            "weights": weights,
            "seed": seed,
            "dims": dict(dims or {}),
            "offline": offline,
            "trust_remote_code": trust_remote_code,
            "last_logits": last_logits,
            "task": task,
        },
    )
    if task and spec.task != task and (spec.kind, task) not in _TOWERS:
        raise UnsupportedError(f"no task '{task}' for '{model}'", hint=f"Its task: {spec.task}.")
    return spec


def _resolved(model: str, revision: str | None, options: Mapping[str, Any]) -> ModelSpec:
    names = short_names()
    if not model.strip():
        raise _unknown(model, names)
    if _FACTORY.fullmatch(model):
        _refuse_revision(model, revision)
        return _factory(model, options)
    if model in names:
        return _short(model, *names[model], revision, options)
    if Path(model).expanduser().exists():
        _refuse_revision(model, revision)
        return _local(Path(model).expanduser().resolve(), options)
    if model.lower().endswith(".gguf"):
        raise UsageError(f"there is no file '{model}'", hint="Give the path of a .gguf file on this machine.")
    if _HUB_ID.fullmatch(model):
        return _owned(model, revision, options) or _hub(model, model, revision, options)
    raise _unknown(model, names)


def short_names() -> dict[str, tuple[str, str]]:
    """Every short name with its family and its source (a Hub id, or a folder shipped in `model_zoo/data`)."""
    return {
        name: (family.name, source)
        for family in plugins.listing("model_zoo").values()
        for name, source in family.literals.get("NAMES", {}).items()
    }


def needs_no_files(model: ModelRequest | ModelSpec) -> bool:
    """Whether its family knows all of it: random weights of a short name, or of a Hub id of the family's library."""
    known = short_names().get(model.name, ("", ""))[1]
    named = model.source == known or _owner(model.source) is not None
    return model.weights == "random" and named and not _source.is_local(model.source)


def _factory(model: str, options: Mapping[str, Any]) -> ModelSpec:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    name = model.replace(":", "-").replace(".", "-")
    return plugins.family("module").describe(ModelRequest(name=name, source=model, config={}, **options))


def _short(name: str, family: str, source: str, revision: str | None, options: Mapping[str, Any]) -> ModelSpec:
    task = options["task"] or plugins.find("model_zoo", family).literals.get("TASKS", {}).get(name, "")
    options = {**options, "task": task}
    if source.startswith(_BUILT_IN):
        _refuse_revision(name, revision)
        return _built_in(name, family, source, options)
    if options["weights"] == "pretrained":
        return _hub_or_fetched(name, source, revision, options)
    config = plugins.find("model_zoo", family).literals["CONFIGS"][name]
    request = ModelRequest(name=name, source=source, config=config, revision=revision, **options)
    return plugins.family(family).describe(request)


def _hub_or_fetched(name: str, source: str, revision: str | None, options: Mapping[str, Any]) -> ModelSpec:
    try:
        return _hub(name, source, revision, options)
    except _source.UnreachableError:
        fetched = _source.fetched(name) if revision is None else None
        if fetched is None:
            raise
    return _local(fetched, options, name=name)


def _built_in(name: str, family: str, source: str, options: Mapping[str, Any]) -> ModelSpec:
    folder = Path(__file__).parent / source
    request = ModelRequest(name=name, source=str(folder), config=_config(folder), **options)
    return plugins.family(family).describe(request)


def _local(path: Path, options: Mapping[str, Any], *, name: str = "") -> ModelSpec:
    """A folder or a GGUF file, called after itself where no name is given."""
    gguf = _gguf.find(path)
    if gguf is not None:
        return _described(name or _gguf.model_name(gguf), gguf, _gguf.config_of(gguf), options)
    if not path.is_dir():
        raise UsageError(
            f"{path} is a file; a model is a folder or a .gguf file", hint="Give the folder with its config.json."
        )
    return _described(name or path.name, path, _config(path), options)


def _described(name: str, source: Path, config: Mapping[str, Any], options: Mapping[str, Any]) -> ModelSpec:
    request = ModelRequest(name=_safe(name), source=str(source), config=config, **options)
    return plugins.family(_family_of(config)).describe(request)


def _hub(name: str, source: str, revision: str | None, options: Mapping[str, Any]) -> ModelSpec:
    folder = _source.files(source, revision=revision, offline=options["offline"])
    config = _config(folder)
    request = ModelRequest(
        name=_safe(name.rpartition("/")[2]), source=source, config=config, revision=folder.name, **options
    )
    return plugins.family(_family_of(config)).describe(request)


def _owned(model: str, revision: str | None, options: Mapping[str, Any]) -> ModelSpec | None:
    """A model of a library that the Hub has an owner for: its family finds the files, if it needs any."""
    family = _owner(model)
    if family is None:
        return None
    name = _safe(model.partition("/")[2])
    request = ModelRequest(name=name, source=model, config={}, revision=revision, **options)
    return plugins.family(family).describe(request)


def _owner(source: str) -> str | None:
    """The family whose file claims the first part of a Hub id as `HUB_OWNER`."""
    owner = source.partition("/")[0]
    claims = ((family.literals.get("HUB_OWNER"), family.name) for family in plugins.listing("model_zoo").values())
    return next((name for claimed, name in claims if owner and claimed == owner), None)


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(
            f"{folder} has no config.json, so it is not a Hugging Face model folder",
            hint="Save the model there with `model.save_pretrained(folder)`, or give another folder.",
        )
    return _source.read_json(path)


def _family_of(config: Mapping[str, Any]) -> str:
    """The family that claims the `model_type`; where there is none, the one whose `CONFIG_KEY` the file has."""
    kind = config.get("model_type")
    for family in plugins.listing("model_zoo").values():
        if kind is None and family.literals.get("CONFIG_KEY") in config:
            return family.name
        if kind is not None and kind in family.literals.get("MODEL_TYPES", ()):
            return family.name
    return "auto"


def _refuse_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise UsageError(
            f"'{model}' does not come from the Hub, so it has no revision '{revision}'", hint="Leave --revision out."
        )


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name) or "model"


def _unknown(model: str, names: Mapping[str, object]) -> UsageError:
    allowed = "Give a short name, a Hub id as org/name, a folder with config.json, a .gguf file, or module:factory"
    if model.startswith((".", "/", "~")) or "\\" in model:
        return UsageError(f"there is no folder '{model}'", hint=f"{allowed}.")
    return UsageError(
        f"unknown model '{model}'",
        hint=f"{plugins.nearest(model, names)}{allowed}; short names: {', '.join(sorted(names))}.",
    )
