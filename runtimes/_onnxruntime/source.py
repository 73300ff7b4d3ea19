"""What a session opens: the file itself, or the very graph in a form that the CPU provider can run or afford."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtimes._onnxruntime.emulation import LACKING, ROUNDED, emulated, what_is_emulated
from runtimes._onnxruntime.operators import Contents
from runtimes._onnxruntime.static_cache import LEFT_OPEN, with_open_length

__all__ = ["WEIGHTS_FOLDER", "Source", "source_of"]

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""The session option that says where the weights of a graph given as bytes lie."""


@dataclass(frozen=True, slots=True)
class Source:
    """A path, or a rewritten graph as bytes, whose weights stay in their own file; `told` says what was rewritten."""

    content: str | bytes
    told: tuple[str, ...] = ()


def source_of(path: Path, held: Contents, *, on_cpu: bool, rounded: bool = False) -> Source:
    """The graph file as it is, unless it holds number types that are emulated or a cache of fixed length.

    On the CPU those are emulated that its provider lacks, and with `rounded` also float16, which it computes in
    float32. Raises StageError where a part of it cannot be emulated.
    """
    source = Source(str(path))
    dtypes = held.dtypes & (ROUNDED if rounded else LACKING)
    if on_cpu and dtypes:
        source = Source(emulated(path, dtypes), (what_is_emulated(dtypes),))
    if ("", "TensorScatter") in held.operators and (opened := with_open_length(source.content)):
        source = Source(opened, (*source.told, LEFT_OPEN))
    return source
