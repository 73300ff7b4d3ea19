"""What the builder's process is asked and what it answers, as JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["BuiltEngine", "Job", "Profile", "partial_path", "write_atomically"]

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

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Job:
        plain: dict[str, Any] = json.loads(text)
        plain["architectures"] = tuple(plain["architectures"])
        plain["profiles"] = tuple(
            {name: tuple(map(tuple, shapes)) for name, shapes in profile.items()} for profile in plain["profiles"]
        )
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """One compiled file. Sizes in bytes; `kernels` counts the builder's own plan, where its log tells it.

    `attentions` of the graph became `fused_attentions` single kernels; `int8_products` are matrix products and
    convolutions with int8 operands, `int8_attentions` fused attentions with such. All count every profile's kernels,
    and are None where the log did not list them.
    """

    architecture: str
    file: str
    bytes: int
    seconds: float
    attentions: int
    fused_attentions: int | None = None
    int8_products: int | None = None
    kernels: int | None = None
    int8_attentions: int | None = None


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
