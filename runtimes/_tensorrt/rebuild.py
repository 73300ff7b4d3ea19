"""Building a bundle's engines again, as its lock says, and comparing them hash by hash."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

from runtimes._tensorrt.builder import LIBRARIES, LOCK_FILE
from runtimes._tensorrt.compile import Limits, compile_engines
from runtimes._tensorrt.job import Job
from runtimes._tensorrt.libraries import PACKAGES, Library, try_library
from runtimes._tensorrt.lock import EngineLock, read_lock
from toolkit.compiled import BuiltEngine, Rebuild, Rebuilt
from toolkit.errors import UnsupportedError, UsageError
from toolkit.hashing import file_sha256, graph_sha256

__all__ = ["rebuild"]


def rebuild(folder: Path, limits: Limits) -> Rebuild:
    """Compile the bundle's own graph in a scratch folder.

    Raises UsageError for a lock that is missing, broken, of another graph or of other engines than those that are
    there, UnsupportedError where nothing was compiled or the lock's library of that very version does not compile
    here, StageError where the build fails.
    """
    lock = read_lock(folder)
    if not lock.engines:
        raise UnsupportedError(
            f"{folder} holds no engine, only its graph, so there is nothing to build again",
            hint=f"python {folder}/build_engine.py, of a bundle that you trust, builds one where a library is.",
        )
    _require_library(lock)
    _require_engines(folder, lock)
    graph = folder / lock.graph
    if graph_sha256(graph) != lock.graph_sha256:
        raise UsageError(f"{graph} is not the graph that the engines were compiled from", hint="Export the model anew.")
    with tempfile.TemporaryDirectory(prefix="toolkit-rebuild-") as scratch:
        job = Job(lock.library, str(graph.resolve()), scratch, tuple(lock.engines), lock.profiles, lock.config)
        built = compile_engines(job, limits)
    return Rebuild(f"{lock.library} {lock.version}", lock.graph, tuple(_compared(lock, engine) for engine in built))


def _require_library(lock: EngineLock) -> None:
    if lock.library not in LIBRARIES:
        raise UsageError(f"the lock names a library that is not known: '{lock.library}'", hint="Export the model anew.")
    found = try_library(cast("Library", lock.library))
    hint = f"pip install '{PACKAGES[lock.library]}=={lock.version}'"
    if found.library is None:
        raise UnsupportedError(f"the engines cannot be built again here: {found.reason}", hint=hint)
    if found.version != lock.version:
        raise UnsupportedError(
            f"the engines are by {lock.library} {lock.version}, here is {found.version}, which compiles other bytes",
            hint=hint,
        )
    missing = [architecture for architecture in lock.engines if architecture not in found.offered]
    if missing:
        raise UnsupportedError(
            f"{lock.library} does not compile for {', '.join(missing)} here",
            hint=f"It compiles for: {', '.join(found.offered)}.",
        )


def _require_engines(folder: Path, lock: EngineLock) -> None:
    """What is compared is the lock's hash: it must be that of the file which a session opens, for every such file."""
    said = {entry.file: entry.sha256 for entry in lock.engines.values()}
    found = (path for path in folder.rglob("*.plan") if path.is_file())
    there = {path.relative_to(folder).as_posix(): file_sha256(path) for path in found}
    odd = sorted(name for name in said.keys() | there.keys() if said.get(name) != there.get(name))
    if odd:
        raise UsageError(
            f"{LOCK_FILE} is not the lock of {', '.join(odd)}",
            hint="Do not use this bundle, it may be forged; or export the model anew.",
        )


def _compared(lock: EngineLock, engine: BuiltEngine) -> Rebuilt:
    entry = lock.engines[engine.architecture]
    return Rebuilt(
        name=engine.architecture,
        file=entry.file,
        locked_sha256=entry.sha256,
        sha256=engine.sha256,
        locked_bytes=entry.bytes,
        bytes=engine.bytes,
        seconds=engine.seconds,
    )
