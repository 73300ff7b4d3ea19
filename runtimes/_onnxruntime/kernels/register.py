"""Giving a session the kernels that its graph calls; without them it takes the functions in the graph itself."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.build import instructions, library

__all__ = ["register_kernels"]


def register_kernels(options: ort.SessionOptions, path: Path) -> str:
    """Register the library where the graph at `path` calls it; answers what then runs, or nothing.

    The first graph that does has the kernels compiled, which takes some seconds once.
    """
    found = library() if _calls_kernels(path) else None
    if found is None:
        return ""
    options.register_custom_ops_library(str(found))
    return f"own {instructions(found)} kernels"


def _calls_kernels(path: Path) -> bool:
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        # ONNX Runtime says it in its own words.
        return False
    return any(node.domain == DOMAIN for node in model.graph.node)
