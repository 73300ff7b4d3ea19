"""Hashes of files, read as a stream so that a model of any size costs the same memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["data_path", "file_sha256", "graph_sha256"]

_CHUNK = 1 << 20


def data_path(path: Path) -> Path:
    """Where the weights of the graph file `path` lie: beside it, with `.data` added to its name."""
    return path.with_name(f"{path.name}.data")


def file_sha256(path: Path) -> str:
    """SHA-256 of one file, in hex. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    _feed(digest, path)
    return digest.hexdigest()


def graph_sha256(path: Path) -> str:
    """SHA-256, in hex, of the graph file's bytes followed by those of its data file, where it has one."""
    digest = hashlib.sha256()
    _feed(digest, path)
    if data_path(path).exists():
        _feed(digest, data_path(path))
    return digest.hexdigest()


def _feed(digest: _Hash, path: Path) -> None:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
