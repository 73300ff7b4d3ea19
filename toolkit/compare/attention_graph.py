"""The attentions of a graph file as they are called: their inputs, read as outputs of the very graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.external_data import set_base_dir

from runtimes._onnxruntime.tapped import TappedGraph
from toolkit.compare.attention_map import AttentionCall
from toolkit.compare.attention_nodes import Reading, is_any_attention, reading_of
from toolkit.compare.attention_torch import numbered
from toolkit.drift.measure import observe
from toolkit.generation.static_cache import growing
from toolkit.types import Tensors

__all__ = ["GraphAttention"]


class GraphAttention:
    """Opens a canonical, quantized or lowered graph on the CPU, answering what its attentions read.

    The tensors stand at the border of the attention node, so that no fusion of the runtime is broken. The graph runs as
    `TappedGraph` runs it, `rounded` or not, a cache of fixed length driven as one that grows. `unread` says by module
    which attentions cannot be read exactly, and why. Raises StageError where ONNX Runtime refuses the graph.
    """

    def __init__(self, path: Path, *, rounded: bool = True) -> None:
        tapped = TappedGraph(path, rounded=rounded)
        model = ir.from_proto(tapped.proto)
        set_base_dir(model.graph, path.parent)
        readings = _readings(model)
        self._readings = {name: each for name, each in readings.items() if each.call is not None}
        self.unread: Mapping[str, str] = {name: each.refusal for name, each in readings.items() if each.refusal}
        needed = {str(value.name): value for each in self._readings.values() for value in each.values}
        self._constants = {
            name: value.const_value.numpy() for name, value in needed.items() if value.const_value is not None
        }
        self._fed = {name: value for name, value in needed.items() if value.is_graph_input()}
        self._taps = [name for name in needed if name not in {*self._constants, *self._fed}]
        # A graph without attention is opened all the same, for what it runs on and for its own errors.
        self._session = growing(tapped.session(self._taps or [value.name for value in tapped.proto.graph.output]))
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
    """Every attention by its module's path; what lies in a subgraph cannot be an output."""
    found: dict[str, Reading] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if not is_any_attention(node):
            continue
        reading = reading_of(node)
        if node.graph is not model.graph:
            reading = Reading(reading.module, reading.operator, refusal=f"{reading.operator} lies in a subgraph")
        found[numbered(reading.module, found)] = reading
    return found


def _as_fed(array: NDArray[Any], value: ir.Value) -> NDArray[Any]:
    """What the graph takes: a cache that is fed in float32 may be of 16 bits in it."""
    if value.dtype is None or value.dtype == ir.DataType.BFLOAT16 or array.dtype == value.dtype.numpy():
        return array
    return np.asarray(array.astype(value.dtype.numpy()))
