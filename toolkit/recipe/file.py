"""Reading and writing recipe files: YAML 1.2, where an error names the file, the line and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from toolkit import plugins
from toolkit.atomic import write_whole
from toolkit.errors import UsageError
from toolkit.recipe.document import VERSION, Recipe

__all__ = ["dump_recipe", "line_of", "read_recipe", "write_recipe"]

_HINT = "toolkit export … --write-recipe FILE writes one that is right."


def read_recipe(path: Path) -> Recipe:
    """The recipe in that file. Raises UsageError with file, line and column for what is not allowed."""
    data = _load(path)
    version = data.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UsageError(
            f"{_at(path, data, ('version',))}: version {version}, this toolkit reads up to {VERSION}",
            hint="Upgrade the toolkit: pip install --upgrade transformer-export-toolkit.",
        )
    try:
        return Recipe.model_validate(_plain(data))
    except ValidationError as error:
        found = [_sentence(path, data, each) for each in error.errors()]
        raise UsageError("; ".join(dict.fromkeys(found)), hint=_HINT) from error


def write_recipe(recipe: Recipe, path: Path, comment: str = "") -> None:
    """Write the file whole or not at all; `comment` goes on top."""
    write_whole(path, dump_recipe(recipe, comment))


def dump_recipe(recipe: Recipe, comment: str = "") -> str:
    """The recipe as YAML, without what is as it would be anyway."""
    from io import StringIO

    values = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    stream = StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump({"version": VERSION, **values}, stream)
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + stream.getvalue()


def _load(path: Path) -> CommentedMap:
    try:
        data = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise UsageError(f"{where}: {error.problem or error.context}", hint=_HINT) from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint=_HINT) from error
    if not isinstance(data, CommentedMap):
        raise UsageError(f"{path} is no recipe: it holds no mapping of keys to values", hint=_HINT)
    return data


def _plain(value: Any) -> Any:
    """The parser's own kinds of mapping, list and scalar as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, CommentedSeq | list):
        return [_plain(item) for item in value]
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


def _sentence(path: Path, data: CommentedMap, entry: Any) -> str:
    location = tuple(entry["loc"])
    name = ".".join(str(part) for part in location if not _is_branch(part))
    where = _at(path, data, location)
    if entry["type"] == "extra_forbidden":
        allowed = _allowed(location[:-1])
        return (
            f"{where}: unknown key '{name}'. {plugins.nearest(str(location[-1]), allowed)}Allowed: {', '.join(allowed)}"
        )
    return f"{where}: {name}: {entry['msg'].removeprefix('Value error, ')}"


def _is_branch(part: Any) -> bool:
    """pydantic names the branch of a union that it tried, as `constrained-float` or `literal['off']`."""
    return isinstance(part, str) and ("[" in part or part in {"float", "constrained-float"})


def _allowed(location: Sequence[Any]) -> list[str]:
    model: Any = Recipe
    for part in location:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        annotation = fields[str(part)].annotation
        models = [each for each in (annotation, *getattr(annotation, "__args__", ())) if hasattr(each, "model_fields")]
        model = models[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def line_of(path: Path, *location: str | int) -> int:
    """The line, from 1, of the innermost part of the location that the file has, as ("targets", 0)."""
    return _position(_load(path), location)[0]


def _at(path: Path, data: CommentedMap, location: Sequence[Any]) -> str:
    line, column = _position(data, location)
    return f"{path}, line {line}, column {column}"


def _position(data: CommentedMap, location: Sequence[Any]) -> tuple[int, int]:
    """Line and column, from 1, of the innermost part of the location that the file has."""
    line, column = 0, 0
    here: Any = data
    for part in location:
        try:
            if isinstance(here, CommentedMap) and part in here:
                line, column = here.lc.key(part)
            elif isinstance(here, CommentedSeq) and isinstance(part, int):
                line, column = here.lc.item(part)
            else:
                break
            here = here[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return line + 1, column + 1
