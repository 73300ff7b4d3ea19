"""Reading and writing recipe files: YAML 1.2, where an error names the file, the line and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from toolkit.atomic import write_whole
from toolkit.recipe.document import VERSION, Recipe
from toolkit.yaml_document import YamlDocument

__all__ = ["dump_recipe", "line_of", "place_of", "read_recipe", "write_recipe"]

_HINT = "toolkit export … --write-recipe FILE writes one that is right."


def read_recipe(path: Path) -> Recipe:
    """The recipe in that file. Raises UsageError with file, line and column for what is not allowed."""
    return _document(path).parse(Recipe, VERSION)


def write_recipe(recipe: Recipe, path: Path, comment: str = "") -> None:
    """Write the file whole or not at all; `comment` goes on top. Raises UsageError where it cannot be written."""
    write_whole(path, dump_recipe(recipe, comment))


def dump_recipe(recipe: Recipe, comment: str = "") -> str:
    """The recipe as YAML, without what is as it would be anyway."""
    values = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    stream = StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump({"version": VERSION, **values}, stream)
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + stream.getvalue()


def place_of(path: Path, location: Sequence[Any]) -> str:
    """File, line and column of the part of the file that `location` leads to, key by key and index by index."""
    return _document(path).where(*location)


def line_of(path: Path, *location: str | int) -> int:
    """The line, from 1, of the innermost part of the location that the file has, as ("targets", 0)."""
    return _document(path).position(*location)[0]


def _document(path: Path) -> YamlDocument:
    return YamlDocument.load(path, "recipe", _HINT)
