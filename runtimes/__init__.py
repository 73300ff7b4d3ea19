"""Runtimes: one folder each, with its lowering rules, engine builder and session.

`portable_session` is the one that every stage is measured with: ONNX Runtime on the CPU, which runs any graph
that is standard ONNX or carries function bodies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from toolkit.types import Session

__all__ = ["portable_session"]


def portable_session(path: Path) -> Session:
    """Open any canonical, quantized or lowered graph file on ONNX Runtime's CPU provider.

    Raises StageError where ONNX Runtime refuses the graph.
    """
    from runtimes._onnxruntime.session import OrtSession

    return OrtSession(path)
