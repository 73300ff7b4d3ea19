"""Palettized weights in standard ONNX: `Gather(table [entries], Cast(indices uint4 or uint8 -> int32))`.

With several groups of output channels the tables lie behind one another, [groups · entries], and what is looked up is
`Add(Cast(indices), base)`: `base` int32 holds g · entries for the channels of group g, [1, N] beside a Linear's weight
[K, N] and [V, 1] beside an embedding table [V, K]. Core ML's `constexpr_lut_to_dense` takes the very same tables and
indices, its weight turned to [N, K].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.block_nodes import lazily
from quantize.linears import add_initializer
from quantize.nodes import map_tensor, new_node, unused_name
from quantize.palettes import Palettes, codes

__all__ = ["write_palettes"]

_UINT4_OPSET = 21


def write_palettes(
    graph: ir.Graph, weight: ir.Value, palettes: Palettes, before: ir.Node, found: NDArray[np.uint8] | None = None
) -> ir.Value:
    """Write the tables and the indices in front of a node; answers the weight in float32.

    `found` are indices that were chosen with care; without them each weight takes the nearest entry.
    """
    tensor = weight.const_value
    if tensor is None:
        raise ValueError(f"weight {weight.name} has no data")
    narrow = palettes.bits == 4 and graph.opset_imports.get("", 0) >= _UINT4_OPSET
    shape = tuple(int(size) for size in tensor.shape)
    stored = lazily(
        lambda: map_tensor(tensor, lambda array: codes(array, palettes)) if found is None else found,
        "uint4" if narrow else "uint8",
        shape,
    )
    indices = add_initializer(graph, f"{weight.name}_indices", stored)
    table = add_initializer(graph, f"{weight.name}_table", ir.tensor(palettes.tables.reshape(-1)))
    places = _insert(graph, "Cast", [indices], f"{weight.name}_places", before, ir.DataType.INT32, shape)
    if len(palettes.tables) > 1:
        base = add_initializer(graph, f"{weight.name}_base", ir.tensor(_base(shape, palettes)))
        places = _insert(graph, "Add", [places, base], f"{weight.name}_own_places", before, ir.DataType.INT32, shape)
    return _insert(graph, "Gather", [table, places], f"{weight.name}_looked_up", before, ir.DataType.FLOAT, shape)


def _base(shape: tuple[int, ...], palettes: Palettes) -> NDArray[np.int32]:
    """Where each channel's own table begins."""
    channels, groups = shape[palettes.axis], len(palettes.tables)
    starts = (np.arange(channels) // (channels // groups) * palettes.entries).astype(np.int32)
    return np.expand_dims(starts, 1 - palettes.axis)


def _insert(
    graph: ir.Graph,
    op_type: str,
    inputs: list[ir.Value | None],
    name: str,
    before: ir.Node,
    dtype: ir.DataType,
    shape: tuple[int, ...],
) -> ir.Value:
    attributes = {"Cast": {"to": int(dtype)}, "Gather": {"axis": 0}}.get(op_type, {})
    node = new_node(op_type, inputs, unused_name(graph, name), before, **attributes)
    node.outputs[0].dtype, node.outputs[0].shape = dtype, ir.Shape(shape)
    graph.insert_before(before, node)
    return node.outputs[0]
