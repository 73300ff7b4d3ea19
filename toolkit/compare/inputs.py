"""What both sides are run on: a file, the golden inputs of one of them, or seeded random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes._onnxruntime.tapped import TappedGraph
from toolkit.compare.sides import Side
from toolkit.errors import UsageError
from toolkit.inputs import check_tensors, read_inputs, read_npz
from toolkit.types import Tensors

__all__ = ["Pictured", "choose_inputs", "choose_picture"]

_SEED = 0
_BATCH, _LENGTH = 2, 16
_TOKENS = 100
"""Random token ids stay below it: every vocabulary has so many."""


@dataclass(frozen=True, slots=True)
class Pictured:
    """The input that attention is drawn for: a row of a batch, what it is called, and its tokens where it has such."""

    batch: Tensors
    row: int
    name: str
    labels: tuple[str, ...] = ()


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


def choose_picture(text: str, sides: Sequence[Side], batches: Sequence[Tensors]) -> Pictured:
    """A number is a row of the batches, counted from 0 over all of them; else a text or an image file.

    Raises UsageError for a row that is not there, and for a text or an image that the model does not take.
    """
    known = next((side for side in sides if side.spec is not None), None)
    assets = known.assets if known else None
    if text.isdecimal():
        batch, row = _row(int(text), batches)
        return Pictured(batch, row, f"row {text} of the inputs", _labels(batch, row, assets))
    if known is None or known.spec is None:
        raise UsageError(f"'{text}' is no row of the inputs", hint="A graph alone takes numbers: give one, as 0.")
    names, tensors = read_inputs([text], known.spec, assets)
    return Pictured(tensors, 0, names[0] if names else text, _labels(tensors, 0, assets))


def _row(number: int, batches: Sequence[Tensors]) -> tuple[Tensors, int]:
    left = number
    for batch in batches:
        rows = next(iter(batch.values())).shape[0]
        if left < rows:
            return batch, left
        left -= rows
    total = number - left
    raise UsageError(f"there is no row {number}", hint=f"The inputs have {total} rows: give 0 to {total - 1}.")


def _labels(batch: Tensors, row: int, assets: Path | None) -> tuple[str, ...]:
    from toolkit.compare.attention_picture import token_labels

    tokens = batch.get("input_ids")
    return token_labels(tokens[row], assets) if tokens is not None and assets is not None else ()


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
