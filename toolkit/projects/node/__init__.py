"""A Node program: onnxruntime-node, no build step; self-test, embeddings, classes of pictures, streamed text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from toolkit.bundle.read import Bundle
from toolkit.projects._javascript import check_javascript, write_sources

__all__ = ["PROJECT", "NodeProject"]

_TEMPLATES = Path(__file__).parent / "templates"


class NodeProject:
    """The same sources for every bundle: a program opens whichever it is given."""

    def check(self, bundle: Bundle) -> None:
        """Raise UnsupportedError for an engine that ONNX Runtime does not open."""
        check_javascript(bundle)

    def write(self, bundles: Sequence[Bundle], folder: Path) -> str:
        """Copy the sources; answers what to type next."""
        write_sources(_TEMPLATES, folder)
        tests = [f"node selftest.mjs {shlex.quote(str(bundle.folder.absolute()))}" for bundle in bundles]
        return "\n".join(["In that folder:", "npm install", *tests])


PROJECT = NodeProject()
