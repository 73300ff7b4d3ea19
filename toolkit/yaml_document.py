"""Reading YAML 1.2 files into a model, where an error names the file, the line and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from toolkit import plugins
from toolkit.errors import UsageError

__all__ = ["YamlDocument"]

Model = TypeVar("Model", bound=BaseModel)

_QUOTES = 'A pattern that begins with * wants quotes, as "*.fc1": fp32.'
_BYTES, _ENTRIES, _DEPTH, _OPEN = 1 << 20, 10_000, 16, 256
"""What no file of ours needs: beyond it one is an accident or an attack, as aliases of aliases."""
_BRACKETS = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A file that holds a mapping, with the place of each key; `hint` goes with every error about it."""

    path: Path
    data: CommentedMap
    hint: str
    values: dict[str, Any]
    """The contents as Python's own mappings, lists and scalars."""

    @classmethod
    def load(cls, path: Path, what: str, hint: str) -> Self:
        """Read the file; `what` is its name in errors. Raises UsageError where it is no YAML or holds no mapping."""
        try:
            data = YAML(typ="rt").load(_text(path))
            if not isinstance(data, CommentedMap):
                raise UsageError(f"{path} is no {what}: it holds no mapping of keys to values", hint=hint)
            return cls(path, data, hint, _plain(data))
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
            more = f"{_QUOTES} {hint}" if "alias" in f"{error.problem} {error.context}" else hint
            raise UsageError(f"{where}: {_first_line(error.problem or error.context)}", hint=more) from error
        except (RecursionError, _TooMuchError) as error:
            raise UsageError(
                f"{path} is no {what}: it is larger or nested deeper than any, its aliases counted",
                hint=f"A {what} has no use for aliases. {hint}",
            ) from error
        except (OSError, ValueError, YAMLError) as error:
            raise UsageError(f"cannot read {path}: {_first_line(error)}", hint=hint) from error

    def parse(self, model: type[Model], newest: int) -> Model:
        """The contents as that model, whose `version` is `newest` at most.

        Raises UsageError with file, line and column for what is not allowed.
        """
        version = self.data.get("version")
        if isinstance(version, int) and version > newest:
            raise UsageError(
                f"{self.where('version')}: version {version}, this toolkit reads up to {newest}",
                hint="Upgrade the toolkit: pip install --upgrade transformer-export-toolkit.",
            )
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            found = [self._sentence(model, each) for each in error.errors()]
            raise UsageError("; ".join(dict.fromkeys(found)), hint=self.hint) from error

    def where(self, *location: Any) -> str:
        """File, line and column of the innermost part of the location that the file has."""
        line, column = self.position(*location)
        return f"{self.path}, line {line}, column {column}"

    def position(self, *location: Any) -> tuple[int, int]:
        """Line and column, from 1, of the innermost part of the location that the file has."""
        line, column = 0, 0
        here: Any = self.data
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

    def _sentence(self, model: type[BaseModel], entry: Any) -> str:
        location = tuple(entry["loc"])
        name = ".".join(str(part) for part in location if not _is_branch(part))
        where = self.where(*location)
        if entry["type"] == "extra_forbidden":
            allowed = _allowed(model, location[:-1])
            near = plugins.nearest(str(location[-1]), allowed)
            return f"{where}: unknown key '{name}'. {near}Allowed: {', '.join(allowed)}"
        return f"{where}: {name}: {entry['msg'].removeprefix('Value error, ')}"


class _TooMuchError(Exception):
    """It never leaves this file."""


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_BYTES + 1)
    # The parser takes time that grows with the square of open brackets before it gives up.
    open_brackets = accumulate(_BRACKETS.get(byte, 0) for byte in data)
    if len(data) > _BYTES or max(open_brackets, default=0) > _OPEN:
        raise _TooMuchError
    return data.decode("utf-8-sig")


def _first_line(text: object) -> str:
    return str(text).strip().partition("\n")[0]


def _plain(data: CommentedMap) -> dict[str, Any]:
    """The parser's own kinds of mapping, list and scalar as Python's. Raises _TooMuchError where there are too many."""
    left = _ENTRIES

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEPTH:
            raise _TooMuchError
        if isinstance(value, Mapping):
            return {str(key): plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, CommentedSeq | list):
            return [plain(item, depth + 1) for item in value]
        return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)

    made: dict[str, Any] = plain(data, 0)
    return made


def _is_branch(part: Any) -> bool:
    """pydantic names the branch of a union that it tried, as `constrained-float` or `literal['off']`."""
    return isinstance(part, str) and ("[" in part or part in {"float", "constrained-float"})


def _allowed(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The keys of the section at that location; a position in a list leads to the list's entries."""
    for part in location:
        if not isinstance(part, int):
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            model = next(iter(_models(fields[str(part)].annotation)))
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    """The sections that an annotation speaks of, as `tuple[Section, ...]` or `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
