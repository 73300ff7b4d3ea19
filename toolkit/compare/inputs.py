"""What both sides are run on: a file, the golden inputs of one of them, or seeded random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes._onnxruntime.tapped import TappedGraph
from toolkit.compare.sides import Side
from toolkit.errors import UsageError
from toolkit.inputs import check_tensors, read_npz
from toolkit.types import Tensors

__all__ = ["choose_inputs"]

_SEED = 0
_BATCH, _LENGTH = 2, 16
_TOKENS = 100
"""Random token ids stay below it: every vocabulary has so many."""


def choose_inputs(sides: Sequence[Side], file: Path | None, graph: TappedGraph) -> tuple[Sequence[Tensors], str]:
    """The batches, and what they are. Raises UsageError for a file that does not fit the model of a side."""
    known = next((side for side in sides if side.inputs is not None), None)
    if file is not None:
        specs = known.spec.inputs if known and known.spec else ()
        tensors = read_npz(file, specs)
        if known and known.spec:
            check_tensors(tensors, known.spec.inputs, known.spec.dims)
        return (tensors,), f"{file}"
    if known is not None and known.inputs is not None:
        batches = known.inputs()
        return batches, f"{len(batches)} golden batches of {known.label.partition('@')[0]}"
    return (_random(graph),), f"random numbers of the graph's own shapes, seed {_SEED}"


def _random(graph: TappedGraph) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(_SEED)
    weights = {tensor.name for tensor in graph.proto.graph.initializer}
    session = graph.session([graph.proto.graph.output[0].name])
    try:
        specs = {spec.name: spec for spec in session.inputs if spec.name not in weights}
    finally:
        session.close()
    made: dict[str, NDArray[Any]] = {}
    for name, spec in specs.items():
        shape = [_size(axis, size) for axis, size in enumerate(spec.shape)]
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            made[name] = generator.standard_normal(shape).astype(dtype)
        elif dtype.kind in "iub" and ("mask" in name or dtype.kind == "b"):
            made[name] = np.ones(shape, dtype)
        elif dtype.kind in "iu":
            limit = 1 if "type" in name else _TOKENS
            made[name] = generator.integers(0, limit, shape).astype(dtype)
        else:
            raise UsageError(f"input '{name}' is {spec.dtype}", hint="Give --inputs FILE.npz with realistic tensors.")
    return made


def _size(axis: int, size: int | str) -> int:
    if isinstance(size, int):
        return size
    return _BATCH if axis == 0 else _LENGTH
