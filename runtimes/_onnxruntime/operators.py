"""Which operators a graph file calls, read without its weights: what decides how a session is opened."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

__all__ = ["operators"]


def operators(path: Path) -> frozenset[tuple[str, str]]:
    """Domain and type of every node of the main graph; none for a file that is no graph.

    ONNX Runtime refuses such a file in its own words.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError:
        return frozenset()
    return frozenset((node.domain, node.op_type) for node in graph.node)
