"""What the builder's process is asked, as a JSON file, and files that are whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtimes._tensorrt.builder import CONFIG

__all__ = ["Job", "Profile", "partial_path", "write_atomically"]

Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, most usual and largest shape of one input."""


@dataclass(frozen=True, slots=True)
class Job:
    """Compile `graph` with the Python module `library`, one file `engine-<architecture>.plan` in `folder` each.

    Architectures are `sm80`, `sm89` and so on. Each of `profiles` has the shapes of every input with a dynamic
    dimension: a language model's engine has one for prefill and one for decoding.
    """

    library: str
    graph: str
    folder: str
    architectures: tuple[str, ...]
    profiles: tuple[Mapping[str, Profile], ...]
    config: Mapping[str, Any] = field(default_factory=lambda: dict(CONFIG))

    def recipe(self) -> str:
        """What `builder.py` reads, as JSON."""
        graph = str(Path(self.graph).absolute())
        return json.dumps({"graph": graph, "profiles": list(self.profiles), "config": dict(self.config)})


def partial_path(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside `path` and rename, so that the file is whole whenever it is there."""
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
