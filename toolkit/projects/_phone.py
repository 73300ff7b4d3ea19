"""What programs for Android and iOS have in common: which bundles they take, and what of them an app needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from toolkit.bundle.manifest import Manifest
from toolkit.bundle.read import Bundle
from toolkit.errors import UnsupportedError
from toolkit.hashing import data_path
from toolkit.projects._writing import copy_files, require_growing_cache

__all__ = ["check_phone", "place_shipped"]

_RUNTIMES = ("ort-mobile", "ort-cpu", "ort-portable")
_SUFFIX = ".ort"


def check_phone(bundle: Bundle) -> None:
    """Raise UnsupportedError for a bundle that ONNX Runtime does not open on a phone's CPU."""
    runtime = bundle.manifest.target.runtime
    if runtime not in _RUNTIMES:
        raise UnsupportedError(
            f"{bundle.folder} is for {runtime}; a phone's program opens .ort and .onnx files of ONNX Runtime",
            hint="Export it with --target ort-mobile-int8, or another of: " + ", ".join(_RUNTIMES) + ".",
        )
    require_growing_cache(bundle, "a phone's program")


def place_shipped(bundle: Bundle, folder: Path) -> None:
    """Copy what an app opens: the manifest, the engine with its weights, the graphs before and after the model."""
    copy_files(bundle, _shipped(bundle.manifest), folder)


def _shipped(manifest: Manifest) -> Iterator[str]:
    engines = [name for name in manifest.engine.files if name.endswith(_SUFFIX)]
    engine = engines[0] if engines else manifest.graph
    yield from (name for name in (engine, data_path(Path(engine)).as_posix()) if name in manifest.files)
    yield from (entry.graph for entry in (manifest.preprocess, manifest.postprocess) if entry and entry.graph)
