"""The attentions of a graph file as they are called: their inputs, read as extra outputs of the very session."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from runtimes import portable_session
from toolkit.compare.attention_map import AttentionCall
from toolkit.compare.attention_nodes import Reading, is_any_attention, reading_of
from toolkit.compare.attention_torch import numbered
from toolkit.drift.measure import observe
from toolkit.types import Tensors

__all__ = ["GraphAttention"]


class GraphAttention:
    """Opens a canonical, quantized or lowered graph with what its attentions read as further outputs.

    The tensors stand at the border of the attention node, so that no fusion of the runtime is broken. The graph runs as
    `runtimes.portable_session` runs it. The rewritten file is beside the graph while it is opened; where that folder
    cannot be written to it is in `work` for as long as the session, with a copy of the weights. `unread` says by module
    which attentions cannot be read exactly, and why.
    Raises StageError where ONNX Runtime refuses the graph.
    """

    def __init__(self, path: Path, work: Path, *, rounded: bool = True) -> None:
        model = ir.load(path)
        readings = _readings(model)
        self._readings = {name: each for name, each in readings.items() if each.call is not None}
        self.unread: Mapping[str, str] = {name: each.refusal for name, each in readings.items() if each.refusal}
        needed = {str(value.name): value for each in self._readings.values() for value in each.values}
        self._constants = {
            name: value.const_value.numpy() for name, value in needed.items() if value.const_value is not None
        }
        self._fed = {name: value for name, value in needed.items() if value.is_graph_input()}
        self._taps = [name for name in needed if name not in {*self._constants, *self._fed}]
        with _tapped(model, path, work, [needed[name] for name in self._taps]) as file:
            self._session = portable_session(file, rounded=rounded)
        self.ran_on = self._session.ran_on

    def calls(self, batch: Tensors, folder: Path) -> dict[str, AttentionCall]:
        """Run the batch; what was read lies memory-mapped in `folder`, which is the caller's to remove.

        Raises StageError where ONNX Runtime fails.
        """
        (answer,) = observe(self._session, [batch], outputs=self._taps, spill=folder)
        fed = {name: _as_fed(batch[name], value) for name, value in self._fed.items()}
        arrays: dict[str, NDArray[Any]] = {**self._constants, **fed, **answer}
        return {name: each.call(arrays) for name, each in self._readings.items() if each.call is not None}

    def close(self) -> None:
        """Close the session."""
        self._session.close()


def _readings(model: ir.Model) -> dict[str, Reading]:
    """Every attention by its module's path; what lies in a subgraph or a function cannot be an output."""
    found: dict[str, Reading] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if not is_any_attention(node):
            continue
        reading = reading_of(node)
        if node.graph is not model.graph:
            reading = Reading(reading.module, reading.operator, refusal=f"{reading.operator} lies in a subgraph")
        found[numbered(reading.module, found)] = reading
    return found


@contextmanager
def _tapped(model: ir.Model, path: Path, work: Path, values: Iterable[ir.Value]) -> Iterator[Path]:
    """The graph with these values as outputs, in a file that finds the same weights; needed while a session opens."""
    taps = [value for value in values if not value.is_graph_output()]
    if any(value.dtype is None for value in taps):
        ShapeInferencePass()(model)
    model.graph.outputs.extend(taps)
    # Links would do for ONNX Runtime, but onnx_ir refuses weights that have several names.
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp.onnx")
    try:
        try:
            ir.save(model, beside)
            place = beside
        except OSError:
            place = _elsewhere(model, path, work)
        yield place
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _elsewhere(model: ir.Model, path: Path, work: Path) -> Path:
    """In `work`, with copies of the weights, where their own folder cannot be written to."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    for location in {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}:
        (work / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / location, work / location)
    ir.save(model, work / path.name)
    return work / path.name


def _as_fed(array: NDArray[Any], value: ir.Value) -> NDArray[Any]:
    """What the graph takes: a cache that is fed in float32 may be of 16 bits in it."""
    if value.dtype is None or value.dtype == ir.DataType.BFLOAT16 or array.dtype == value.dtype.numpy():
        return array
    return np.asarray(array.astype(value.dtype.numpy()))
