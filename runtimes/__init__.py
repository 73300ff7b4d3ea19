"""Runtimes: one folder each, with its lowering rules, engine builder and session.

`portable_session` is the one that every stage is measured with: ONNX Runtime on the CPU, which runs any graph
that is standard ONNX or carries function bodies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from toolkit.types import Decoder, DecoderSpec, ModelSpec, Session

__all__ = ["portable_decoder", "portable_session"]


def portable_session(path: Path, *, rounded: bool = True, spec: ModelSpec | None = None) -> Session:
    """Open any canonical, quantized or lowered graph file on ONNX Runtime's CPU provider.

    What the graph computes in float16 or bfloat16 is rounded to it after each operator and overflows as it would on a
    device, which `ran_on` says; `rounded` False leaves float16 to ONNX Runtime, which computes it in float32.
    A cache of fixed length is driven as one that grows, and with the model's `spec` a graph of one fixed shape row by
    row, so that all take the same inputs. Raises StageError where ONNX Runtime refuses the graph.
    """
    from runtimes._onnxruntime.rows import fed_by_rows
    from runtimes._onnxruntime.session import OrtSession
    from toolkit.generation.static_cache import growing

    session = growing(OrtSession(path, rounded=rounded))
    return fed_by_rows(session, spec) if spec is not None else session


def portable_decoder(path: Path, spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
    """Open a language model's graph as `portable_session` does, its cache in place where the graph allows.

    Raises StageError where ONNX Runtime refuses the graph, UsageError for a limit or rows that it does not take.
    """
    from runtimes._onnxruntime.decoder import open_decoder
    from runtimes._onnxruntime.session import OrtSession

    return open_decoder(OrtSession(path, rounded=True), spec, limit=limit, rows=rows)
