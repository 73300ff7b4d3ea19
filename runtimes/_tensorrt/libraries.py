"""Which library compiles here: TensorRT on a GPU, TensorRT-RTX anywhere; tried, not guessed from version numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from runtimes._tensorrt.builder import INSTALL
from runtimes._tensorrt.compile import probe
from runtimes._tensorrt.devices import devices

__all__ = ["PACKAGES", "RTX", "Builder", "Library", "choose", "try_library"]

Library = Literal["tensorrt", "tensorrt_rtx"]

RTX: Library = "tensorrt_rtx"
PACKAGES = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx-cu13"}
"""The package on PyPI of each library."""

_STAND_IN = (
    "compiled by TensorRT-RTX in TensorRT's place: that its parser takes the graph does not prove that TensorRT's "
    "does, and the engine files run on the TensorRT-RTX runtime"
)


@dataclass(frozen=True, slots=True)
class Builder:
    """The library that compiles here, or None and the reason why none does.

    `offered` are the architectures that it compiles for. `reason` may also hold what to know of its engines.
    """

    library: Library | None
    version: str = ""
    offered: tuple[str, ...] = ()
    reason: str = ""


def choose(libraries: Sequence[Library]) -> Builder:
    """The first of the libraries that compiles here, with the reasons against those before it."""
    reasons: list[str] = []
    for library in libraries:
        found = try_library(library)
        if found.library:
            caveat = [_STAND_IN] if library != libraries[0] else []
            return Builder(library, found.version, found.offered, "; ".join([*reasons, *caveat]))
        reasons.append(found.reason)
    return Builder(None, reason="; ".join(reasons))


def try_library(library: Library) -> Builder:
    """What one library can do here; its `library` is None where it does not start."""
    if importlib.util.find_spec(library) is None:
        return Builder(None, reason=f"{library} is not installed ({INSTALL[library]})")
    present, why = devices()
    if library != RTX and not present:
        return Builder(None, reason=f"{library} compiles on a GPU only: {why}")
    found = probe(library)
    if found.reason:
        return Builder(None, reason=f"{found.reason} ({INSTALL[library]})")
    # A library that cannot be told an architecture compiles for the first device.
    return Builder(library, found.version, found.offered or tuple(device.architecture for device in present[:1]))
