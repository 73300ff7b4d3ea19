"""Giving a session the kernels that its graph calls; without them it takes the functions in the graph itself."""

from __future__ import annotations

from collections.abc import Set

import onnxruntime as ort

from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.build import instructions, library

__all__ = ["register_kernels"]


def register_kernels(options: ort.SessionOptions, called: Set[tuple[str, str]]) -> str:
    """Register the library for a graph with these operators if it is among them; answers what then runs, or nothing.

    The first graph that calls it has the kernels compiled, which takes some seconds once.
    """
    found = library() if any(domain == DOMAIN for domain, _ in called) else None
    if found is None:
        return ""
    options.register_custom_ops_library(str(found))
    return f"own {instructions(found)} kernels"
