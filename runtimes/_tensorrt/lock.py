"""`engine.lock.json`: what an engine was compiled from, by what and how, so that it can be built again and compared.

The bundle's own `build_engine.py` reads it too. A bundle without an engine has one as well: there `library`, `version`
and `engines` are empty, and the rest says how an engine is to be built.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from runtimes._tensorrt.builder import CONFIG, LOCK_FILE
from runtimes._tensorrt.job import Profile, write_atomically
from toolkit.bundle.manifest import FileEntry, RelativePath
from toolkit.compiled import BuiltEngine
from toolkit.document import Frozen, read_document

__all__ = ["LOCK_VERSION", "EngineLock", "LockedEngine", "locked", "read_lock", "write_lock"]

LOCK_VERSION = 1


class LockedEngine(FileEntry):
    """An engine file with its SHA-256 and its size in bytes."""

    file: RelativePath


class EngineLock(Frozen):
    """The graph by its hash (its file's bytes, then its data file's), and all that the builder was told.

    `libraries` are those that may compile it, in order of preference; `library` is the one that did. `driver` is the
    CUDA version of the driver where there was one. Each of `profiles` has the smallest, usual and largest shape of
    every dynamic input. `architectures` are those that were asked for.
    """

    schema_version: Literal[1] = 1
    graph: RelativePath
    graph_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    libraries: tuple[str, ...]
    library: str = ""
    version: str = Field("", pattern=r"^[\w.+-]*$")
    driver: str = ""
    config: dict[str, JsonValue] = Field(default_factory=lambda: dict(CONFIG))
    profiles: tuple[dict[str, Profile], ...]
    architectures: tuple[str, ...]
    engines: dict[str, LockedEngine] = Field(default_factory=dict)


def locked(engines: Iterable[BuiltEngine]) -> dict[str, LockedEngine]:
    """The entries of engines that were just built, by architecture."""
    return {
        engine.architecture: LockedEngine(file=engine.file, sha256=engine.sha256, bytes=engine.bytes)
        for engine in engines
    }


def write_lock(folder: Path, lock: EngineLock) -> Path:
    """Write the lock into `folder`, whole or not at all; answers its name."""
    write_atomically(folder / LOCK_FILE, f"{lock.model_dump_json(indent=2)}\n".encode())
    return Path(LOCK_FILE)


def read_lock(folder: Path) -> EngineLock:
    """The lock of a bundle. Raises UsageError where there is none, or it is broken or of a newer schema."""
    return read_document(folder / LOCK_FILE, EngineLock, LOCK_VERSION, "engine lock")
