"""The Swift sources that every bundle carries beside its package: a class that runs it, and the self-test."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from toolkit.types import Engine

__all__ = ["with_swift"]

_SOURCES = Path(__file__).parent / "swift"


def with_swift(engine: Engine) -> Engine:
    """The engine with `selftest.swift` and what it needs beside its graph, and among its files."""
    folder, names = engine.graph.path.parent, sorted(path.name for path in _SOURCES.glob("*.swift"))
    for name in names:
        shutil.copyfile(_SOURCES / name, folder / name)
    return replace(engine, files=(*engine.files, *map(Path, names)))
