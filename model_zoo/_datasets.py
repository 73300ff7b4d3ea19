"""Images and texts from the `datasets` library: a data set of the Hub, streamed, or one that lies on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from model_zoo._samples import Sample
from toolkit.data_source import DATASETS, DataSource
from toolkit.errors import MissingDependencyError, UsageError

__all__ = ["open_samples"]

_BUILDERS = {".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
_SAVED = ("dataset_dict.json", "state.json")
_CALIBRATION, _HELD_OUT = ("train",), ("validation", "test")
_USUAL = {"text": ("text",), "image": ("image", "img")}
_LABELS = ("label", "labels")


def open_samples(
    source: DataSource, content: Literal["image", "text"], *, held_out: bool, offline: bool, count: int
) -> tuple[str, Iterator[Sample]]:
    """What the data set is called with its split, and its rows; of one on the Hub the first 1,000, or 10 times `count`.

    Without a split, `train` is taken to calibrate and `validation` or `test` to evaluate, or the only one there is.
    Code that a data set brings along is never run. Raises MissingDependencyError without the library, UsageError for
    what is not there, has no such column, or cannot be reached.
    """
    if importlib.util.find_spec("datasets") is None:
        raise MissingDependencyError(
            f"'{source.text}' needs the datasets library", hint='pip install "transformer-export-toolkit[datasets]"'
        )
    if offline and source.path is None:
        raise UsageError(
            f"'{source.text}' is no data set on this machine, and --offline forbids to ask the Hub",
            hint=f"Give {DATASETS}FOLDER of a data set that lies here, or leave --offline out.",
        )
    splits = _loaded(source)
    split = _split(source, list(splits), _HELD_OUT if held_out else _CALIBRATION)
    rows = _undecoded(splits[split])
    limit = None if source.path is not None else max(1000, 10 * count)
    config = f"/{source.config}" if source.config else ""
    name = f"{DATASETS}{source.name}{config}:{split}"
    return name, _samples(rows, source, content, name, limit)


def _library() -> Any:
    import datasets

    return datasets


def _loaded(source: DataSource) -> Mapping[str, Any]:
    datasets = _library()
    datasets.disable_progress_bars()
    arguments: dict[str, Any] = {"streaming": True}
    if int(datasets.__version__.partition(".")[0]) < 4:
        # Later versions cannot run a repository's code at all.
        arguments["trust_remote_code"] = False
    path = source.path
    try:
        if path is not None and any((path / name).is_file() for name in _SAVED):
            saved = datasets.load_from_disk(str(path))
            return saved if isinstance(saved, dict) else {source.split or "train": saved}
        if path is not None and path.is_file():
            return _loaded_file(path, arguments)
        loaded: Mapping[str, Any] = datasets.load_dataset(source.name, source.config or None, **arguments)
    except UsageError:
        raise
    except Exception as error:
        raise _failed(source.text, error) from error
    return loaded


def _loaded_file(path: Path, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    datasets = _library()
    builder = _BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise UsageError(f"{path} is no file of a data set", hint=f"Taken are: {', '.join(_BUILDERS)}.")
    loaded: Mapping[str, Any] = datasets.load_dataset(builder, data_files=str(path), **arguments)
    return loaded


def _split(source: DataSource, splits: list[str], usual: tuple[str, ...]) -> str:
    wanted = [source.split] if source.split else [*usual, *(splits if len(splits) == 1 else ())]
    found = [split for split in wanted if split in splits]
    if not found:
        missing = f"split '{source.split}'" if source.split else f"split {' or '.join(usual)}"
        raise UsageError(
            f"'{source.text}' has no {missing}", hint=f"Its splits: {', '.join(splits)}; write {DATASETS}NAME:SPLIT."
        )
    return found[0]


def _undecoded(rows: Any) -> Any:
    """Image columns as bytes or paths: of a long stream few images are kept, and only those are decoded."""
    datasets = _library()
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _samples(rows: Any, source: DataSource, content: str, name: str, limit: int | None) -> Iterator[Sample]:
    features = dict(rows.features or {})
    read: Callable[[Any, str], Any] = _image if content == "image" else _text
    column = label = ""
    for number, row in enumerate(_guarded(islice(rows, limit), name), 1):
        where = f"{name}, row {number}"
        if not column:
            column = _column(source, row, features, content)
            label = _label(source, row)
        value = read(row.get(column), f"{where}, column '{column}'")
        if value is not None:
            yield Sample(value, _named(row.get(label), features.get(label), where), where)


def _guarded(rows: Iterable[Any], name: str) -> Iterator[Any]:
    try:
        yield from rows
    except Exception as error:
        raise _failed(name, error) from error


def _column(source: DataSource, row: Mapping[str, Any], features: Mapping[str, Any], content: str) -> str:
    """The column that was named, or the usual one, or the only one of that kind."""
    if source.column:
        candidates = [source.column] if source.column in row else []
    else:
        fitting = [key for key in row if _fits(row[key], features.get(key), content)]
        candidates = [key for key in _USUAL[content] if key in fitting] or fitting
    if not candidates or (len(candidates) > 1 and candidates[0] not in _USUAL[content]):
        which = f"no column '{source.column}'" if source.column else f"no one column of {content}s"
        raise UsageError(
            f"'{source.text}' has {which}", hint=f"Its columns: {', '.join(row)}; write {DATASETS}NAME#COLUMN."
        )
    return candidates[0]


def _fits(value: Any, feature: Any, content: str) -> bool:
    datasets = _library()
    if content == "image":
        return isinstance(feature, datasets.Image)
    return isinstance(value, str) and not isinstance(feature, datasets.Image)


def _label(source: DataSource, row: Mapping[str, Any]) -> str:
    if source.label and source.label not in row:
        raise UsageError(f"'{source.text}' has no column '{source.label}'", hint=f"Its columns: {', '.join(row)}.")
    return source.label or next((key for key in _LABELS if key in row), "")


def _named(value: Any, feature: Any, where: str) -> str | int | None:
    """A class by the data set's own name where it has one; -1 stands for none."""
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"{where}, has a label that is neither a name nor a whole number", hint="Name another column.")
    return str(feature.int2str(value)) if hasattr(feature, "int2str") and isinstance(value, int) else value


def _text(value: Any, where: str) -> str | None:
    if not isinstance(value, str):
        raise UsageError(f"{where} holds no text", hint=f"Write {DATASETS}NAME#COLUMN for another.")
    return value.strip() or None


def _image(value: Any, where: str) -> Any:
    if not isinstance(value, Mapping) or not (value.get("bytes") or value.get("path")):
        raise UsageError(f"{where} holds no image", hint=f"Write {DATASETS}NAME#COLUMN for another.")
    if value.get("bytes"):
        return value["bytes"]
    path = Path(str(value["path"]))
    return path if path.is_file() else partial(_fetched, dict(value))


def _fetched(value: dict[str, Any]) -> Any:
    """An image that lies in an archive or on the Hub, which the library knows how to open."""
    datasets = _library()
    return datasets.Image().decode_example(value)


def _failed(name: str, error: Exception) -> UsageError:
    said = str(error).partition("\n")[0]
    if isinstance(error, ConnectionError):
        return UsageError(
            f"'{name}' cannot be reached: {said}",
            hint=f"Check the name and the network, or give {DATASETS}FOLDER of a data set that lies here.",
        )
    return UsageError(
        f"the datasets library cannot read '{name}': {type(error).__name__}: {said}",
        hint=f"Write {DATASETS}NAME[/CONFIG][:SPLIT][#COLUMN]; NAME is owner/name on the Hub, or a folder.",
    )
