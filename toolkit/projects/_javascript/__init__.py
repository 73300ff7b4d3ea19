"""What programs in JavaScript share: `templates/lib` reads, checks and runs bundles in Node and in browsers."""

from __future__ import annotations

import shutil
from pathlib import Path

from toolkit.bundle.read import Bundle
from toolkit.cache_names import WRITE_INDICES
from toolkit.errors import UnsupportedError

__all__ = ["check_javascript", "write_sources"]

_SHARED = Path(__file__).parent / "templates"
_GRAPHS = (".onnx", ".ort")


def check_javascript(bundle: Bundle) -> None:
    """Raise UnsupportedError for an engine that ONNX Runtime does not open, or whose cache it does not drive."""
    engine, target = bundle.manifest.engine, bundle.manifest.target
    if not any(file.endswith(_GRAPHS) for file in engine.files):
        held = ", ".join(engine.files[:3]) or f"its graph alone: {engine.reason}"
        raise UnsupportedError(
            f"no program in JavaScript runs {target.runtime}-{target.scheme}: its engine is {held}",
            hint="Export with --target ort-cpu-int8, or ort-portable-int4 for a language model.",
        )
    if any(item.name == WRITE_INDICES for item in engine.inputs):
        raise UnsupportedError(
            f"no program in JavaScript drives the cache of fixed length of {bundle.folder}",
            hint="Export again without --cache static.",
        )


def write_sources(templates: Path, folder: Path) -> None:
    """Write the program's own sources, and those that all of them share into `lib`, into the folder."""
    for source in (_SHARED, templates):
        shutil.copytree(source, folder, dirs_exist_ok=True)
