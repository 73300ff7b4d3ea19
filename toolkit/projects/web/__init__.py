"""A web page: onnxruntime-web on WebAssembly, no bundler, no CDN; self-test, classes of a picture, texts compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from toolkit.bundle.manifest import MANIFEST
from toolkit.bundle.read import Bundle
from toolkit.errors import UsageError
from toolkit.projects._javascript import check_javascript, write_sources

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
        names = [bundle.folder.resolve().name for bundle in bundles]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise UsageError(f"two bundles are called '{double[0]}'", hint="Give each once, or rename one's folder.")
        for name, bundle in zip(names, bundles, strict=True):
            _copy(bundle, folder / "bundles" / name)
        (folder / "bundles.json").write_text(json.dumps(names), encoding="utf-8")
        return _NEXT


def _copy(bundle: Bundle, folder: Path) -> None:
    for name in (MANIFEST, *bundle.manifest.files):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(name), target)


PROJECT = WebProject()
