"""Single images and texts as they lie in folders and files: what each holds, its class, and where it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data_source import DataSource
from toolkit.errors import UsageError

__all__ = ["IMAGES", "Sample", "image_samples", "no_text", "text_samples", "unreadable"]

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_TEXTS = frozenset({".txt", ".jsonl"})
_LINE = 'A line is {"text": "…"} or "…", with a "label" where there are classes; other keys are named FILE#KEY,LABEL.'


@dataclass(frozen=True, slots=True)
class Sample:
    """One image (a file or its bytes), text, row number or run of tokens; its class by name or index; its place."""

    content: Any
    label: str | int | None
    where: str


def image_samples(folder: Path) -> Iterator[Sample]:
    """The image files below a folder in order of their paths; the first sub-folder is the class. Or the one file.

    Hidden files and folders are left out. Raises UsageError where there are none.
    """
    if folder.is_file():
        yield Sample(folder, None, str(folder))
        return
    found = _below(folder, IMAGES)
    if not found:
        raise UsageError(f"{folder} holds no images", hint=f"Taken are: {', '.join(sorted(IMAGES))}.")
    for path in found:
        inner = path.relative_to(folder).parts[:-1]
        yield Sample(path, inner[0] if inner else None, str(path))


def text_samples(source: DataSource, path: Path) -> Iterator[Sample]:
    """The texts of a file (`.jsonl` by its keys, any other one a line), or of all `.txt` and `.jsonl` below a folder.

    Blank texts are left out. Raises UsageError that names file and line where one cannot be read, or holds nothing.
    """
    empty = True
    for file in [path] if path.is_file() else _below(path, _TEXTS):
        for sample in _texts(file, source):
            empty = False
            yield sample
    if empty:
        raise no_text(path)


def no_text(place: object) -> UsageError:
    """What is said where nothing is left to read."""
    return UsageError(f"{place} holds no text", hint="Give a .txt file, one text a line, or a .jsonl file.")


def unreadable(path: Path, error: Exception) -> UsageError:
    """What is said of a file or folder that the system does not give."""
    if not path.exists():
        return UsageError(f"there is no {path}", hint="Give an existing folder or file.")
    return UsageError(f"{path} cannot be read: {error}", hint="Check the file and its permissions.")


def _below(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    def stop(error: OSError) -> None:
        raise unreadable(folder, error) from error

    found = []
    for place, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in suffixes and path.is_file())


def _texts(path: Path, source: DataSource) -> Iterator[Sample]:
    try:
        # What is not UTF-8 comes through as lone surrogates, so that the line can be named.
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                text, label = _parsed(where, line, source) if path.suffix.lower() == ".jsonl" else (line, None)
                _require_utf8(path, number, text)
                if text.strip():
                    yield Sample(text.strip(), label, where)
    except OSError as error:
        raise unreadable(path, error) from error


def _require_utf8(path: Path, number: int, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{path} cannot be read: line {number} is not UTF-8",
            hint="Check the file; iconv makes it UTF-8.",
        ) from error


def _parsed(where: str, line: str, source: DataSource) -> tuple[str, str | int | None]:
    if not line.strip():
        return "", None
    key, label_key = source.column or "text", source.label or "label"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}, is not JSON: {error}", hint=_LINE) from error
    text = value.get(key) if isinstance(value, dict) else value
    label = value.get(label_key) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise UsageError(f"{where}, has no text (key '{key}')", hint=_LINE)
    if isinstance(label, bool) or not isinstance(label, str | int | None):
        raise UsageError(f"{where}, has a label that is neither a name nor a whole number", hint=_LINE)
    return text, label
