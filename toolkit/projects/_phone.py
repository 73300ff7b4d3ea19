"""What programs for Android and iOS have in common: which bundles they take, and what of them an app needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.bundle.manifest import MANIFEST, Manifest
from toolkit.bundle.read import Bundle
from toolkit.errors import UnsupportedError, UsageError
from toolkit.hashing import data_path

__all__ = ["check_phone", "copy_templates", "named", "place_shipped", "place_whole"]

_RUNTIMES = ("ort-mobile", "ort-cpu")
_SUFFIX = ".ort"


def check_phone(bundle: Bundle) -> None:
    """Raise UnsupportedError for a bundle that ONNX Runtime does not open on a phone's CPU."""
    runtime = bundle.manifest.target.runtime
    if runtime not in _RUNTIMES:
        raise UnsupportedError(
            f"{bundle.folder} is for {runtime}; a phone's program opens .ort and .onnx files of ONNX Runtime",
            hint="Export it with --target ort-mobile-int8, or another of: " + ", ".join(_RUNTIMES) + ".",
        )


def named(bundles: Sequence[Bundle]) -> dict[str, Bundle]:
    """The bundles by the name of their folder. Raises UsageError where two have the same."""
    found: dict[str, Bundle] = {}
    for bundle in bundles:
        name = bundle.folder.resolve().name
        if name in found:
            raise UsageError(f"two bundles are called '{name}'", hint="Give each once, or rename one's folder.")
        found[name] = bundle
    return found


def copy_templates(source: Path, folder: Path) -> None:
    """Write the program's sources into the folder as they are."""
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def place_shipped(bundle: Bundle, folder: Path) -> None:
    """Copy what an app opens: the manifest, the engine with its weights, the graphs before and after the model."""
    _copy(bundle, [MANIFEST, *_shipped(bundle.manifest)], folder)


def place_whole(bundle: Bundle, folder: Path) -> None:
    """Copy the bundle, for the self-test."""
    _copy(bundle, [MANIFEST, *bundle.manifest.files], folder)


def _shipped(manifest: Manifest) -> Iterator[str]:
    engines = [name for name in manifest.engine.files if name.endswith(_SUFFIX)]
    engine = engines[0] if engines else manifest.graph
    yield from (name for name in (engine, data_path(Path(engine)).as_posix()) if name in manifest.files)
    yield from (entry.graph for entry in (manifest.preprocess, manifest.postprocess) if entry and entry.graph)


def _copy(bundle: Bundle, names: Sequence[str], folder: Path) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(name), target)
