"""Reading and writing recipe files: YAML 1.2, where an error names the file, the line and what is allowed."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from toolkit.atomic import write_text
from toolkit.errors import UsageError
from toolkit.recipe.document import VERSION, Recipe
from toolkit.yaml_document import YamlDocument

__all__ = ["HINT", "dump_recipe", "read_recipe", "write_recipe"]

HINT = "toolkit export … --write-recipe FILE writes one that is right."


def read_recipe(path: Path) -> Recipe:
    """The recipe in that file. Raises UsageError with file, line and column for what is not allowed."""
    return YamlDocument.load(path, "recipe", HINT).parse(Recipe, VERSION)


def write_recipe(recipe: Recipe, path: Path, comment: str = "") -> None:
    """Write the file whole or not at all; `comment` goes on top."""
    try:
        write_text(path, dump_recipe(recipe, comment))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="Give another file.") from error


def dump_recipe(recipe: Recipe, comment: str = "") -> str:
    """The recipe as YAML, without what is as it would be anyway."""
    values = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    stream = StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump({"version": VERSION, **values}, stream)
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + stream.getvalue()
