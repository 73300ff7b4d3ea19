"""What programs in JavaScript share: `templates/lib` reads, checks and runs bundles in Node and in browsers."""

from __future__ import annotations

from pathlib import Path

from toolkit.bundle.read import Bundle
from toolkit.projects._writing import copy_sources, require_graph, require_growing_cache

__all__ = ["check_javascript", "write_sources"]

_SHARED = Path(__file__).parent / "templates"
_PROGRAM = "a program in JavaScript"
_HINT = "Export with --target ort-cpu-int8, or ort-portable-int4 for a language model."


def check_javascript(bundle: Bundle) -> None:
    """Raise UnsupportedError for an engine that ONNX Runtime does not open, or whose cache it does not drive."""
    require_graph(bundle, _PROGRAM, _HINT)
    require_growing_cache(bundle, _PROGRAM)


def write_sources(templates: Path, folder: Path) -> None:
    """Write the program's own sources, and those that all of them share into `lib`, into the folder."""
    for source in (_SHARED, templates):
        copy_sources(source, folder)
