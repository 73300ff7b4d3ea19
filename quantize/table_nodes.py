"""A quantized embedding table, written once for its lookups and for the heads that multiply with its transpose.

The canonical form is `DequantizeLinear(integers [V, K], scale [V, K / block], axis 1)` read by Gather (axis 0) and by
Transpose in front of a head's MatMul. A runtime looks rows up in the integers and multiplies by the very same bytes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantize.block_nodes import Offsets, Rounded, append, dequantize_node
from quantize.linears import add_initializer, drop_unused
from quantize.tables import Table

__all__ = ["write_table"]


def write_table(graph: ir.Graph, table: Table, made: Rounded, offsets: Offsets) -> None:
    """Put the integers in the table's place. An offset [V, K / block] is added to the rows that are looked up."""
    readers = {use.node for use in table.weight.uses()}
    first = next(node for node in graph if node in readers)
    weight = dequantize_node(graph, table.weight, made, first)
    offset = add_initializer(graph, f"{table.weight.name}_offset", made.offset) if made.offset is not None else None
    for use in list(table.weight.uses()):
        use.node.replace_input_with(use.idx, weight)
    if offset is not None:
        for node in table.gathers:
            _add_to_rows(graph, node, offset, made.grid.block_size)
        for node in table.heads:
            _add_to_head(graph, node, offset, made.grid.block_size, offsets)
    drop_unused(graph, [table.weight])


def _add_to_rows(graph: ir.Graph, node: ir.Node, offset: ir.Value, block_size: int) -> None:
    rows, ids = node.outputs[0], node.inputs[1]
    readers = [(use.node, use.idx) for use in rows.uses()]
    if rows.shape is None or ids is None:
        raise ValueError(f"the rank of what {node.name} looks up is unknown")
    rank = len(rows.shape)
    blocks = int(offset.shape[1]) if offset.shape is not None else -1
    split = _constant(graph, f"{rows.name}_split", [0] * (rank - 1) + [blocks, block_size])
    joined = _constant(graph, f"{rows.name}_joined", [0] * (rank - 1) + [blocks * block_size])
    axis = _constant(graph, f"{rows.name}_axis", [rank])
    found = append(graph, node, "Gather", [offset, ids], f"{rows.name}_offset", axis=0)
    wide = append(graph, found.producer(), "Unsqueeze", [found, axis], f"{rows.name}_offset_wide")
    by_block = append(graph, wide.producer(), "Reshape", [rows, split], f"{rows.name}_blocks")
    total = append(graph, by_block.producer(), "Add", [by_block, wide], f"{rows.name}_sum")
    exact = append(graph, total.producer(), "Reshape", [total, joined], f"{rows.name}_exact")
    exact.shape = rows.shape
    for reader, index in readers:
        reader.replace_input_with(index, exact)


def _add_to_head(graph: ir.Graph, node: ir.Node, offset: ir.Value, block_size: int, offsets: Offsets) -> None:
    transpose = node.inputs[1].producer() if node.inputs[1] is not None else None
    turned = append(graph, transpose, "Transpose", [offset], f"{offset.name}_transposed", perm=[1, 0])
    offsets.add(node, turned, block_size)


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    return add_initializer(graph, name, ir.tensor(np.array(values, np.int64)))
