"""Reading YAML 1.2 files into a model, where an error names the file, the line and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A file that holds a mapping, with the place of each key; `hint` goes with every error about it."""

    path: Path
    data: CommentedMap
    hint: str

    @classmethod
    def load(cls, path: Path, what: str, hint: str) -> Self:
        """Read the file; `what` is its name in errors. Raises UsageError where it is no YAML or holds no mapping."""
        try:
            data = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
            raise UsageError(f"{where}: {error.problem or error.context}", hint=hint) from error
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            raise UsageError(f"cannot read {path}: {error}", hint=hint) from error
        if not isinstance(data, CommentedMap):
            raise UsageError(f"{path} is no {what}: it holds no mapping of keys to values", hint=hint)
        return cls(path, data, hint)

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
            return model.model_validate(_plain(self.data))
        except ValidationError as error:
            found = [self._sentence(model, each) for each in error.errors()]
            raise UsageError("; ".join(dict.fromkeys(found)), hint=self.hint) from error

    def where(self, *location: Any) -> str:
        """File, line and column of the innermost part of the location that the file has."""
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
        return f"{self.path}, line {line + 1}, column {column + 1}"

    def _sentence(self, model: type[BaseModel], entry: Any) -> str:
        location = tuple(entry["loc"])
        name = ".".join(str(part) for part in location if not _is_branch(part))
        where = self.where(*location)
        if entry["type"] == "extra_forbidden":
            allowed = _allowed(model, location[:-1])
            near = plugins.nearest(str(location[-1]), allowed)
            return f"{where}: unknown key '{name}'. {near}Allowed: {', '.join(allowed)}"
        return f"{where}: {name}: {entry['msg'].removeprefix('Value error, ')}"


def _plain(value: Any) -> Any:
    """The parser's own kinds of mapping, list and scalar as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, CommentedSeq | list):
        return [_plain(item) for item in value]
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


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
