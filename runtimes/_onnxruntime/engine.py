"""For ONNX Runtime the engine is the lowered graph itself; building it means that a session opened it and ran."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from runtimes._onnxruntime.session import OrtSession
from toolkit.errors import UsageError
from toolkit.hashing import data_path
from toolkit.types import Engine, LoweredGraph, ModelSpec, Tensors

__all__ = ["BUILDER", "executed_engine", "files_of", "graph_file", "zero_inputs"]

_PROMPT = 8
BUILDER = f"onnxruntime {ort.__version__}"


def executed_engine(graph: LoweredGraph, session: OrtSession, details: Mapping[str, Any] | None = None) -> Engine:
    """Run the session once on zeros of the spec's tuned shapes and answer the engine, status `executed`.

    `details` are kept beside what the run tells. Raises StageError where ONNX Runtime cannot run it.
    """
    session.run(zero_inputs(graph.spec))
    told = {"ran_on": session.ran_on, "bytes": sum(path.stat().st_size for path in _paths(graph))}
    return Engine(graph, "executed", BUILDER, files_of(graph), details={**(details or {}), **told})


def files_of(graph: LoweredGraph) -> tuple[Path, ...]:
    """The graph and its weights, relative to the graph's folder."""
    return tuple(path.relative_to(graph.path.parent) for path in _paths(graph))


def graph_file(folder: Path, engine: Mapping[str, Any]) -> Path:
    """The graph that the engine's entry names: for ONNX Runtime it is the engine. Raises UsageError where none is."""
    name = engine.get("graph")
    if not isinstance(name, str) or not name:
        raise UsageError(
            f"the engine's entry in {folder} names no graph",
            hint="The bundle's manifest is damaged; export it again.",
        )
    return folder / name


def zero_inputs(spec: ModelSpec) -> Tensors:
    """Zeros for every input, each dynamic dimension at the size that engines are tuned for.

    A language model gets a short prompt of token 0, all of it real, and an empty cache.
    """
    sizes = {name: dim.opt for name, dim in spec.dims.items()}
    if spec.decoder is not None:
        steps = min(sizes["sequence"], _PROMPT)
        sizes |= {"sequence": steps, "past_sequence": 0, "total_sequence": steps}
    shapes = {
        tensor.name: [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape] for tensor in spec.inputs
    }
    feeds = {tensor.name: np.zeros(shapes[tensor.name], tensor.dtype) for tensor in spec.inputs}
    if spec.decoder is not None and "attention_mask" in feeds:
        feeds["attention_mask"][:] = 1
    return feeds


def _paths(graph: LoweredGraph) -> tuple[Path, ...]:
    return tuple(path for path in (graph.path, data_path(graph.path)) if path.exists())
