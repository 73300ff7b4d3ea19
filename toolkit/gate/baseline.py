"""`drift-baseline.json`: what each subject measured when it was last accepted, in a file that diffs well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from toolkit.atomic import write_whole
from toolkit.document import Frozen, read_document
from toolkit.errors import UsageError
from toolkit.gate.record import Record
from toolkit.gate.tolerance import DEFAULTS

__all__ = ["SCHEMA_VERSION", "Baseline", "changes", "merged", "read_baseline", "write_baseline"]

SCHEMA_VERSION = 1


def _known(key: str) -> str:
    if key not in DEFAULTS:
        raise ValueError(f"'{key}' is no tolerance; allowed: {', '.join(DEFAULTS)}")
    return key


_Key = Annotated[str, AfterValidator(_known)]


class Baseline(Frozen):
    """Records by subject, and the tolerances that differ from the defaults; null: not compared."""

    schema_version: Literal[1] = 1
    tolerances: dict[Annotated[str, AfterValidator(_known)], Annotated[float, Field(ge=0)] | None] = Field(
        default_factory=dict
    )
    subjects: dict[str, Record] = Field(default_factory=dict)


def read_baseline(path: Path) -> Baseline:
    """Read and check the file. Raises UsageError for broken JSON, a newer schema, unknown or missing fields."""
    try:
        return read_document(path, Baseline, SCHEMA_VERSION, "drift baseline")
    except UsageError as error:
        hint = "Take it from version control, or write it anew with toolkit gate … --update."
        raise UsageError(str(error), hint=error.hint if "Upgrade" in error.hint else hint) from error


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write the file whole or not at all; the same baseline is the same bytes."""
    write_whole(path, baseline.model_dump_json(indent=2) + "\n")


def merged(baseline: Baseline, records: Mapping[str, Record], tolerances: Mapping[str, float | None]) -> Baseline:
    """The baseline with these records and tolerances in place of its own, the rest kept, subjects by name."""
    subjects = {**baseline.subjects, **records}
    kept = {**baseline.tolerances, **tolerances}
    return Baseline(
        tolerances={key: kept[key] for key in DEFAULTS if key in kept and kept[key] != DEFAULTS[key].default},
        subjects={name: subjects[name] for name in sorted(subjects)},
    )


def changes(before: Baseline, after: Baseline) -> list[str]:
    """A line for each value that differs, as `vit-digits-ort-cpu-int8: stages.engine.….sqnr_db 44.15 → 43.9`."""
    lines = list(_differences("tolerance", before.tolerances, after.tolerances))
    for name, record in after.subjects.items():
        if name not in before.subjects:
            lines.append(f"{name}: added")
        else:
            lines += _differences(f"{name}:", before.subjects[name].model_dump(), record.model_dump())
    return lines


def _differences(title: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    left, right = dict(_leaves(before)), dict(_leaves(after))
    for path in dict.fromkeys([*left, *right]):
        old, new = left.get(path, "none"), right.get(path, "none")
        if old != new:
            yield f"{title} {path} {old} → {new}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, "off" if value is None else value
