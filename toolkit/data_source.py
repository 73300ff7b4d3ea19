"""What a data set is called, on the command line and in recipe files: a folder, a file, or a `datasets` name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import UsageError

if TYPE_CHECKING:
    from toolkit.recipe.document import Data

__all__ = ["DATASETS", "NO_DATA", "DataSource", "beside", "parse_source", "require_there", "source_or_count"]

DATASETS = "datasets:"
NO_DATA = "none"
"""The source of an evaluation on golden inputs alone."""

_FORM = "datasets:NAME[/CONFIG][:SPLIT][#COLUMN[,LABEL]]"


@dataclass(frozen=True, slots=True)
class DataSource:
    """A source taken apart. `path` is set for what lies on this machine; `name` only for the `datasets` library's.

    `column` holds the content and `label` the class, both empty for the usual names.
    """

    text: str
    path: Path | None = None
    name: str = ""
    config: str = ""
    split: str = ""
    column: str = ""
    label: str = ""

    @property
    def suffix(self) -> str:
        """The file's ending in lower case, as `.npz`; empty for a folder and for a data set of the library."""
        return self.path.suffix.lower() if self.path is not None and not self.name and not self.path.is_dir() else ""


def parse_source(data: Data) -> DataSource:
    """`photos`, `texts.jsonl#body`, `datasets:owner/name/config:split#column,label` as their parts.

    Columns may also be given apart, as `data.column`. A path that exists as it stands is taken as it stands.
    Raises UsageError for a name that is none, and for columns that are given twice.
    """
    if data.source.startswith(DATASETS):
        return _library(data)
    whole = Path(data.source)
    place, _, columns = (data.source, "", "") if whole.exists() else data.source.partition("#")
    column, label = _columns(data, columns)
    path = Path(place)
    if column and not path.is_dir() and path.suffix.lower() != ".jsonl":
        raise UsageError(f"{place} has no columns", hint="A column is for JSONL files and for datasets:NAME.")
    return DataSource(data.source, path, column=column, label=label)


def beside(source: str, folder: Path) -> str:
    """A source whose path exists in `folder`, as a path from here; any other as it stands."""
    if source == NO_DATA:
        return source
    library = source.startswith(DATASETS)
    bare = source.removeprefix(DATASETS)
    for place, rest in _cuts(bare, "#:/" if library else "#"):
        if place and (folder / place).exists():
            return f"{DATASETS if library else ''}{folder / place}{rest}"
    return source


def require_there(data: Data) -> None:
    """Raises UsageError where the source is a path that does not exist, or a name that is none."""
    source = parse_source(data) if data.source else None
    if source is not None and source.path is not None and not source.path.exists():
        raise UsageError(
            f"there is no {source.path} to take inputs from",
            hint="Give an existing folder or file, or a number of samples.",
        )


def _library(data: Data) -> DataSource:
    rest, _, columns = data.source.removeprefix(DATASETS).partition("#")
    column, label = _columns(data, columns)
    for place, tail in _cuts(rest, ":/"):
        if _is_local(place, whole=not tail.startswith("/")):
            config, _, split = tail.removeprefix("/").partition(":")
            return DataSource(data.source, Path(place), place, config, split, column, label)
    name, _, split = rest.partition(":")
    parts = name.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts) or name.startswith("."):
        raise UsageError(f"'{data.source}' names no data set that exists here or on the Hub", hint=f"Write {_FORM}.")
    config = parts.pop() if len(parts) == 3 else ""
    return DataSource(data.source, None, "/".join(parts), config, split, column, label)


def _is_local(place: str, *, whole: bool) -> bool:
    """With a configuration behind it, a folder has to look like one: there may be an `owner` here for `owner/name`."""
    return bool(place.strip("./")) and (whole or place.startswith(("/", "."))) and Path(place).exists()


def _columns(data: Data, given: str) -> tuple[str, str]:
    if given and data.column and given != data.column:
        raise UsageError(f"'{data.source}' and column '{data.column}' name two columns", hint="Give one of them.")
    column, _, label = (given or data.column).partition(",")
    return column.strip(), label.strip()


def _cuts(text: str, marks: str) -> list[tuple[str, str]]:
    """The text cut before each of the marks, the longest head first."""
    ends = [len(text), *(index for index in range(len(text) - 1, 0, -1) if text[index] in marks)]
    return [(text[:end], text[end:]) for end in ends]


def source_or_count(text: str, count: int | None = None) -> tuple[str, int | None]:
    """What `--calibration` says: a set of the user's own, or by a number how many of the family's own samples.

    `count` is what `--calibration-count` says. Raises UsageError for no text, a number of 0, and two numbers.
    """
    if not text.strip():
        raise UsageError("--calibration is empty", hint="Give a folder, a file or datasets:NAME, or leave it out.")
    if not text.isdecimal():
        return text, count
    number = int(text)
    if not number:
        raise UsageError("--calibration 0 leaves no samples to calibrate on", hint="Give at least one.")
    if count not in (None, number):
        raise UsageError(f"--calibration {number} and --calibration-count {count} differ", hint="Give one of them.")
    return "", number
