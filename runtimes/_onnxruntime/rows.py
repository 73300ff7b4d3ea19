"""A session of one fixed shape, fed with any: row by row, padded with zeros, the answers cut to what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes._onnxruntime.feeds import check_feeds
from toolkit.errors import UsageError
from toolkit.generation.static_cache import SpecifiedSession
from toolkit.types import ModelSpec, Session, Tensors, TensorSpec

__all__ = ["RowSession", "fed_by_rows"]

_BATCH = "batch"


class RowSession:
    """Takes and answers the model's own shapes, `inputs` and `outputs`, over a session whose shapes are numbers.

    Axis 0, where it is called `batch`, is cut into single rows; every other named axis is padded with zeros at its end,
    and cut again in the answers. Closing it closes the session.
    """

    def __init__(self, session: SpecifiedSession, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.ran_on = session.ran_on
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._session = session
        fixed = {tensor.name: tensor.shape for tensor in session.inputs}
        self._shapes = {tensor.name: fixed[tensor.name] for tensor in inputs}

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name.

        Raises UsageError on a wrong name, dtype, rank or dimension, and for an input larger than the engine's.
        """
        feeds = check_feeds(inputs, self.inputs)
        sizes = self._sizes(feeds)
        rows = [self._session.run(self._row(feeds, row)) for row in range(sizes.get(_BATCH, 1))]
        return {spec.name: _joined(spec, [row[spec.name] for row in rows], sizes) for spec in self.outputs}

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def _sizes(self, feeds: Tensors) -> dict[str, int]:
        """The size of each named dimension in these inputs; at least one row."""
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            for dim, size, most in zip(spec.shape, feeds[spec.name].shape, self._shapes[spec.name], strict=True):
                if isinstance(dim, str) and dim != _BATCH and isinstance(most, int) and size > most:
                    raise UsageError(
                        f"{dim} is {size} in '{spec.name}'; the engine takes at most {most}",
                        hint=f"Give less, or export again with --dim {dim}=1:{size}:{size}.",
                    )
                if isinstance(dim, str):
                    sizes[dim] = size
        if sizes.get(_BATCH, 1) < 1:
            raise UsageError("the inputs have no rows", hint="Give at least one row.")
        return sizes

    def _row(self, feeds: Tensors, row: int) -> dict[str, NDArray[Any]]:
        chosen = {
            spec.name: feeds[spec.name][row : row + 1] if spec.shape[:1] == (_BATCH,) else feeds[spec.name]
            for spec in self.inputs
        }
        return {name: _padded(array, self._shapes[name]) for name, array in chosen.items()}


def fed_by_rows(session: SpecifiedSession, spec: ModelSpec) -> Session:
    """The session as it is, or by rows where it has one fixed shape and the model has not."""
    named = any(isinstance(dim, str) for tensor in spec.inputs for dim in tensor.shape)
    fixed = all(isinstance(dim, int) for tensor in session.inputs for dim in tensor.shape)
    return RowSession(session, spec.inputs, spec.outputs) if named and fixed else session


def _padded(array: NDArray[Any], shape: Sequence[int | str]) -> NDArray[Any]:
    widths = [(0, size - have if isinstance(size, int) else 0) for size, have in zip(shape, array.shape, strict=True)]
    return np.pad(array, widths) if any(after for _, after in widths) else np.ascontiguousarray(array)


def _joined(spec: TensorSpec, rows: Sequence[NDArray[Any]], sizes: Mapping[str, int]) -> NDArray[Any]:
    """The rows behind one another along the output's batch, each named axis cut to its size in the inputs."""
    axis = spec.shape.index(_BATCH) if _BATCH in spec.shape else 0
    joined = np.concatenate(rows, axis) if len(rows) > 1 else rows[0]
    known = [sizes.get(dim) if isinstance(dim, str) and dim != _BATCH else None for dim in spec.shape]
    return np.ascontiguousarray(joined[tuple(slice(size) for size in known)])
