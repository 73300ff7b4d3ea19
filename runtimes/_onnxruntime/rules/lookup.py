"""Embedding tables in blocks of int8 where no operator knows them: only the rows looked up become float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter
from toolkit.types import Step

__all__ = ["look_up_integers"]


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Integers [V, K] and their scales [V, K / size]."""

    integers: ir.Value
    scales: ir.Value
    size: int


def look_up_integers(model: ir.Model, emit: Emitter) -> list[Step]:
    """Gather rows [..., K] of the integers and their scales, and multiply these: a standard graph of the same numbers.

    As it stands, `DequantizeLinear` makes the whole table float, in each run or once for all in memory.
    """
    done = 0
    for node in list(model.graph):
        table = _table(node)
        for reader in [use.node for use in node.outputs[0].uses() if use.idx == 0] if table is not None else []:
            if table is not None and _looks_up_rows(reader):
                _rewrite(reader, table, emit)
                done += 1
    how = "rows become float after the lookup"
    return [Step("lower", "embedding lookups in int8", done, how)] if done else []


def _table(node: ir.Node) -> _Table | None:
    """What a symmetric `DequantizeLinear` of constants with blocks along the rows holds; None for anything else."""
    size = node.attributes.get_int("block_size", 0)
    if node.op_type != "DequantizeLinear" or node.domain or not size or node.attributes.get_int("axis", 1) % 2 != 1:
        return None
    integers, scales, zeros = (*node.inputs, None)[:3]
    if integers is None or scales is None or integers.dtype != ir.DataType.INT8:
        return None
    if integers.const_value is None or scales.const_value is None or len(integers.const_value.shape) != 2:
        return None
    if zeros is not None and (zeros.const_value is None or zeros.const_value.numpy().any()):
        return None
    blocks, width = int(scales.const_value.shape[1]), int(integers.const_value.shape[1])
    if blocks > 1 and blocks * size != width:
        return None
    return _Table(integers, scales, size)


def _looks_up_rows(node: ir.Node) -> bool:
    rows = node.outputs[0].shape
    return node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 and rows is not None


def _rewrite(node: ir.Node, table: _Table, emit: Emitter) -> None:
    rows, ids = node.outputs[0], node.inputs[1]
    rank, blocks = len(rows.shape or ()), int(table.scales.shape[1]) if table.scales.shape is not None else 0
    picked = emit.before(node, "Gather", [table.integers, ids], {"axis": 0}).outputs[0]
    picked.shape, picked.type = rows.shape, ir.TensorType(ir.DataType.INT8)
    wide = emit.before(node, "Cast", [picked], {"to": int(ir.DataType.FLOAT)}, like=rows).outputs[0]
    scale = emit.before(node, "Gather", [table.scales, ids], {"axis": 0}).outputs[0]
    if blocks == 1:
        found = emit.before(node, "Mul", [wide, scale], like=rows)
    else:
        split, joined = [0] * (rank - 1) + [blocks, table.size], [0] * (rank - 1) + [blocks * table.size]
        parts = emit.before(node, "Reshape", [wide, emit.constant(np.array(split, np.int64))])
        factor = emit.before(node, "Unsqueeze", [scale, emit.constant(np.array([-1], np.int64))])
        product = emit.before(node, "Mul", [parts.outputs[0], factor.outputs[0]])
        found = emit.before(node, "Reshape", [product.outputs[0], emit.constant(np.array(joined, np.int64))], like=rows)
    emit.replace(rows, found.outputs[0])
