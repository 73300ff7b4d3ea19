"""Where a model's files come from: a local folder, a GGUF file, or the Hugging Face Hub.

Imports nothing heavy at module level.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from model_zoo import _gguf, _gguf_assets
from toolkit.errors import UsageError

__all__ = ["UnreachableError", "fetched", "files", "is_local", "read_json", "snapshot"]

_SMALL = ("*.json", "*.txt", "*.model", "*/config.json")
_WEIGHTS = ("*.safetensors",)


class UnreachableError(UsageError):
    """The Hub cannot be reached, or must not be, and its cache does not have the files."""


def is_local(source: str) -> bool:
    """Whether the source is a folder or a GGUF file on this machine."""
    return Path(source).is_dir() or _gguf.is_gguf(source)


def files(source: str, *, revision: str | None, offline: bool, weights: bool = False) -> Path:
    """The folder that holds the source's files: itself when local, else a snapshot from the Hub.

    For a GGUF file that is a folder in the user's cache with the configuration and the tokenizer that it holds; its
    weights stay where they are. Raises UsageError when the Hub has no such repository or cannot be reached.
    """
    if _gguf.is_gguf(source):
        return _gguf_assets.folder(Path(source))
    if is_local(source):
        return Path(source)
    return snapshot(source, (*_SMALL, *_WEIGHTS) if weights else _SMALL, revision=revision, offline=offline)


def fetched(name: str) -> Path | None:
    """What `scripts/fetch_models.py` brought of that name: a folder called so, or a GGUF file of a model called so.

    Case is not looked at: `smollm2-135m-instruct` is `SmolLM2-135M-Instruct.Q4_1.gguf`.
    """
    import platformdirs

    root = Path(platformdirs.user_cache_dir("transformer-export-toolkit")) / "models"
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_dir() and folder.name.lower() == name.lower():
            return folder
        for file in sorted(folder.glob("*.gguf")):
            if _gguf.model_name(file).lower() == name.lower():
                return file
    return None


@lru_cache(maxsize=16)
def snapshot(repository: str, patterns: Sequence[str], *, revision: str | None, offline: bool) -> Path:
    """Fetch the files of a Hub repository that match, or take them from its cache.

    The folder's name is the commit. Raises UsageError when that cannot be done.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(patterns), local_files_only=offline
        )
    except Exception as error:
        raise _unavailable(repository, revision, offline, error) from error
    return Path(folder)


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file. Raises UsageError that names the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable JSON: {error}", hint="Fetch or save the file again.") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _unavailable(repository: str, revision: str | None, offline: bool, error: Exception) -> UsageError:
    """Tell apart: no such repository, no such revision, no access, no network."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    instead = (
        f"Give a local folder (there is no '{repository}' here), or a short name with `--weights random` "
        "(`toolkit list models`)."
    )
    if isinstance(error, GatedRepoError):
        return UsageError(f"'{repository}' is gated on the Hub", hint=f"Log in with `hf auth login`. {instead}")
    if isinstance(error, RevisionNotFoundError):
        return UsageError(f"'{repository}' has no revision '{revision}'", hint="Leave --revision out, or fix it.")
    if isinstance(error, RepositoryNotFoundError):
        return UsageError(f"the Hub has no model '{repository}', or it is private", hint=instead)
    why = "not in the cache, and --offline was given" if offline else f"the Hub cannot be reached ({_first(error)})"
    return UnreachableError(f"'{repository}': {why}", hint=instead)


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
