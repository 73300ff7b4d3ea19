"""Noting in a graph which tensors it divides by a vector, so that who compares it with another can undo that."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["SCALED", "divided", "note_divided"]

SCALED = "toolkit.divided"
"""Metadata of the main graph: JSON of `out` and `in`, each from a module's path to its divisors [K], base64 of float32.

`out` says that what the module answers is divided along its last axis, `in` that what it reads is.
"""


def note_divided(
    graph: ir.Graph, side: Literal["out", "in"], paths: Iterable[str], divisor: NDArray[np.floating[Any]]
) -> None:
    """Note the divisor [K] beside what was noted before; what is divided twice has the product."""
    noted: dict[str, dict[str, str]] = json.loads(graph.metadata_props.get(SCALED, "{}"))
    entries = noted.setdefault(side, {})
    for path in paths:
        before = _read(entries[path]) if path in entries else np.float32(1)
        entries[path] = base64.b64encode((before * divisor).astype("<f4").tobytes()).decode("ascii")
    graph.metadata_props[SCALED] = json.dumps(noted, sort_keys=True)


def divided(noted: str) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """What the metadata notes: side (`out` or `in`), module path and divisors [K] of each; nothing for no note."""
    for side, entries in json.loads(noted or "{}").items():
        for path, text in entries.items():
            yield side, path, _read(text)


def _read(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), np.dtype("<f4"))
