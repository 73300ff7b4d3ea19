"""What all programs are written with: sources copied as they are, bundles by name, files of a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.bundle.manifest import MANIFEST
from toolkit.bundle.read import Bundle
from toolkit.cache_names import WRITE_INDICES
from toolkit.errors import UnsupportedError, UsageError

__all__ = ["GRAPHS", "copy_files", "copy_sources", "copy_whole", "named", "require_graph", "require_growing_cache"]

GRAPHS = (".onnx", ".ort")
"""What ONNX Runtime opens."""


def copy_sources(templates: Path, folder: Path) -> None:
    """Write the program's sources into the folder as they are."""
    shutil.copytree(templates, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def named(bundles: Sequence[Bundle]) -> dict[str, Bundle]:
    """The bundles by the name of their folder. Raises UsageError where two have the same."""
    found: dict[str, Bundle] = {}
    for bundle in bundles:
        name = bundle.folder.resolve().name
        if name in found:
            raise UsageError(f"two bundles are called '{name}'", hint="Give each once, or rename one's folder.")
        found[name] = bundle
    return found


def copy_files(bundle: Bundle, names: Iterable[str], folder: Path) -> None:
    """Copy these files of the bundle, and its manifest, to the same places in the folder."""
    for name in (MANIFEST, *names):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(name), target)


def copy_whole(bundle: Bundle, folder: Path) -> None:
    """Copy the bundle, for a self-test."""
    copy_files(bundle, bundle.manifest.files, folder)


def require_graph(bundle: Bundle, program: str, hint: str) -> None:
    """Raise UnsupportedError for an engine that is no graph for ONNX Runtime; `program` is who would run it."""
    engine, target = bundle.manifest.engine, bundle.manifest.target
    if not any(file.endswith(GRAPHS) for file in engine.files):
        held = ", ".join(engine.files[:3]) or f"its graph alone: {engine.reason}"
        raise UnsupportedError(
            f"{bundle.folder}: {program} does not run {target.runtime}-{target.scheme}: its engine is {held}", hint=hint
        )


def require_growing_cache(bundle: Bundle, program: str) -> None:
    """Raise UnsupportedError for a language model whose cache has a fixed length."""
    if any(item.name == WRITE_INDICES for item in bundle.manifest.engine.inputs):
        raise UnsupportedError(
            f"{program} does not drive the cache of fixed length of {bundle.folder}",
            hint="Export again without --kv-cache static.",
        )
