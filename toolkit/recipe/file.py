"""Reading and writing recipe files: YAML 1.2, where an error names the file, the line and what is allowed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from toolkit import plugins
from toolkit.errors import UsageError
from toolkit.recipe.document import VERSION, Recipe

__all__ = ["dump_recipe", "place_of", "read_recipe", "write_recipe"]

_HINT = "toolkit export … --write-recipe FILE writes one that is right."
_QUOTES = 'A pattern that begins with * wants quotes, as "*.fc1": fp32.'
_BYTES, _ENTRIES, _DEPTH, _OPEN = 1 << 20, 10_000, 16, 256
"""What no recipe needs: beyond it a file is an accident or an attack, as aliases of aliases."""
_BRACKETS = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


def read_recipe(path: Path) -> Recipe:
    """The recipe in that file. Raises UsageError with file, line and column for what is not allowed."""
    data = _load(path)
    values = _plain(path, data)
    version = data.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UsageError(
            f"{_at(path, data, ('version',))}: version {version}, this toolkit reads up to {VERSION}",
            hint="Upgrade the toolkit: pip install --upgrade transformer-export-toolkit.",
        )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        found = [_sentence(path, data, each) for each in error.errors()]
        raise UsageError("; ".join(dict.fromkeys(found)), hint=_HINT) from error


def write_recipe(recipe: Recipe, path: Path, comment: str = "") -> None:
    """Write the file whole or not at all; `comment` goes on top."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(dump_recipe(recipe, comment))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="Give another file.") from error
    finally:
        partial.unlink(missing_ok=True)


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


def place_of(path: Path, location: Sequence[Any]) -> str:
    """File, line and column of the part of the file that `location` leads to, key by key and index by index."""
    return _at(path, _load(path), location)


def _load(path: Path) -> CommentedMap:
    try:
        data = YAML(typ="rt").load(_text(path))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        hint = f"{_QUOTES} {_HINT}" if "alias" in f"{error.problem} {error.context}" else _HINT
        raise UsageError(f"{where}: {_first_line(error.problem or error.context)}", hint=hint) from error
    except (OSError, ValueError, YAMLError) as error:
        raise UsageError(f"cannot read {path}: {_first_line(error)}", hint=_HINT) from error
    except RecursionError as error:
        raise _too_much(path) from error
    if not isinstance(data, CommentedMap):
        raise UsageError(f"{path} is no recipe: it holds no mapping of keys to values", hint=_HINT)
    return data


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_BYTES + 1)
    # The parser takes time that grows with the square of open brackets before it gives up.
    open_brackets = accumulate(_BRACKETS.get(byte, 0) for byte in data)
    if len(data) > _BYTES or max(open_brackets, default=0) > _OPEN:
        raise _too_much(path)
    return data.decode("utf-8-sig")


def _first_line(text: object) -> str:
    return str(text).strip().partition("\n")[0]


def _too_much(path: Path) -> UsageError:
    return UsageError(
        f"{path} is no recipe: it is larger or nested deeper than any, its aliases counted",
        hint=f"A recipe has no use for aliases. {_HINT}",
    )


def _plain(path: Path, data: CommentedMap) -> dict[str, Any]:
    """The parser's own kinds of mapping, list and scalar as Python's. Raises UsageError where there are too many."""
    left = _ENTRIES

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEPTH:
            raise _too_much(path)
        if isinstance(value, Mapping):
            return {str(key): plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, CommentedSeq | list):
            return [plain(item, depth + 1) for item in value]
        return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)

    made: dict[str, Any] = plain(data, 0)
    return made


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


def _at(path: Path, data: CommentedMap, location: Sequence[Any]) -> str:
    """File, line and column of the innermost part of the location that the file has."""
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
    return f"{path}, line {line + 1}, column {column + 1}"
