"""JSON files with a schema number: read once, checked wholly, refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit.errors import UsageError

__all__ = ["Frozen", "read_document"]


class Frozen(BaseModel):
    """A model that takes no unknown field and does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Document = TypeVar("Document", bound=BaseModel)

_EXPORT = "Write the bundle anew with toolkit export."


def read_document(path: Path, model: type[Document], newest: int, what: str, hint: str = _EXPORT) -> Document:
    """The file as that model, whose `schema_version` is `newest` at most; `what` is its name in errors.

    `hint` says how to get one that is right.
    Raises UsageError for broken JSON, a newer schema, unknown or missing fields.
    """
    data = _json(path, what, hint)
    version = data.get("schema_version")
    if isinstance(version, int) and version > newest:
        raise UsageError(
            f"{path} has schema {version}, this toolkit reads up to {newest}",
            hint="Upgrade the toolkit: pip install --upgrade transformer-export-toolkit.",
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{path} is not a valid {what}: {_sentences(error, what)}", hint=hint) from error


def _json(path: Path, what: str, hint: str) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint=hint) from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a valid {what}: it holds no JSON object", hint=hint)
    return data


def _sentences(error: ValidationError, what: str) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in entry['loc']) or what}: {entry['msg']}" for entry in error.errors()[:3]
    )
