"""A web page: onnxruntime-web on WebAssembly, no bundler, no CDN; self-test, classes of a picture, texts compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from toolkit.bundle.read import Bundle
from toolkit.projects._javascript import check_javascript, write_sources
from toolkit.projects._writing import copy_whole, named

__all__ = ["PROJECT", "WebProject"]

_TEMPLATES = Path(__file__).parent / "templates"
_NEXT = "In that folder:\nnpm install\npython3 -m http.server 8000 --bind 127.0.0.1\nThen open http://localhost:8000/"


class WebProject:
    """The page with its bundles beside it, in `bundles`; `bundles.json` lists them."""

    def check(self, bundle: Bundle) -> None:
        """Raise UnsupportedError for an engine that ONNX Runtime does not open."""
        check_javascript(bundle)

    def write(self, bundles: Sequence[Bundle], folder: Path) -> str:
        """Copy the sources and the bundles; answers what to type next. Raises UsageError where two have one name."""
        write_sources(_TEMPLATES, folder)
        by_name = named(bundles)
        for name, bundle in by_name.items():
            copy_whole(bundle, folder / "bundles" / name)
        (folder / "bundles.json").write_text(json.dumps(list(by_name)), encoding="utf-8")
        return _NEXT


PROJECT = WebProject()
