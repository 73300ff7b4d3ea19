"""Embedding tables: what is looked up by token, and the heads that multiply with the same table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
import onnx_ir as ir

from quantize.nodes import constant, map_tensor, module_path, new_node, unused_name

__all__ = ["Table", "find_tables", "matches", "tie"]

_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A weight [V, K] whose rows are looked up by `gathers`; `heads` are MatMuls with its transpose."""

    weight: ir.Value
    gathers: tuple[ir.Node, ...]
    heads: tuple[ir.Node, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of the modules that read the table, the heads' first."""
        return tuple(dict.fromkeys(module_path(node) for node in (*self.heads, *self.gathers)))


def find_tables(graph: ir.Graph) -> list[Table]:
    """Every float32 [V, K] that Gather reads by rows, and nothing but Gathers and heads reads.

    Call `tie` first: a head's own copy of the table, or its Gemm, is then one of `heads`.
    """
    found = (_table(graph, value) for value in graph.initializers.values())
    return [table for table in found if table is not None]


def matches(table: Table, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the path of a module that reads the table."""
    return any(fnmatch(module, pattern) for pattern in patterns for module in table.modules)


def tie(graph: ir.Graph) -> int:
    """Make each MatMul whose weight [K, V] is a copy of a table's transpose read the table; answers how many.

    The exporter folds a tied head's transpose into a second copy of the weight.
    """
    tied = 0
    for table in find_tables(graph):
        for node in list(graph):
            if _is_head_copy(node, table.weight):
                _read_transposed(graph, node, table.weight)
                tied += 1
    return tied


def _table(graph: ir.Graph, value: ir.Value) -> Table | None:
    tensor = constant(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or value.is_graph_output():
        return None
    uses = list(value.uses())
    gathers = tuple(use.node for use in uses if _looks_up(use.node) and use.idx == 0)
    heads = [_head(graph, use.node) for use in uses if use.node not in gathers]
    if not gathers or None in heads:
        return None
    return Table(value, gathers, tuple(head for head in heads if head is not None))


def _looks_up(node: ir.Node) -> bool:
    return node.op_type == "Gather" and node.domain in {"", "ai.onnx"} and node.attributes.get_int("axis", 0) == 0


def _head(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    """The only MatMul that reads what this Transpose makes."""
    if node.op_type != "Transpose" or list(node.attributes.get_ints("perm", (1, 0))) != [1, 0]:
        return None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    reader = uses[0].node
    return reader if reader.op_type == "MatMul" and uses[0].idx == 1 else None


def _is_head_copy(node: ir.Node, table: ir.Value) -> bool:
    if node.op_type != "MatMul" or len(node.inputs) < 2:
        return False
    copy, original = constant(node.inputs[1]), constant(table)
    if copy is None or original is None or copy.dtype != original.dtype:
        return False
    if list(copy.shape) != list(original.shape)[::-1]:
        return False
    return map_tensor(copy, lambda head: map_tensor(original, lambda rows: _is_transpose(head, rows)))


def _is_transpose(head: np.ndarray, table: np.ndarray) -> bool:
    starts = range(0, len(table), _ROWS)
    return all(np.array_equal(head[:, start : start + _ROWS].T, table[start : start + _ROWS]) for start in starts)


def _read_transposed(graph: ir.Graph, node: ir.Node, table: ir.Value) -> None:
    copy = node.inputs[1]
    transpose = new_node("Transpose", [table], unused_name(graph, f"{table.name}_transposed"), node, perm=[1, 0])
    output = transpose.outputs[0]
    output.dtype = ir.DataType.FLOAT
    output.shape = copy.shape if copy is not None else None
    graph.insert_before(node, transpose)
    node.replace_input_with(1, output)
    if copy is not None and copy.name and not copy.uses():
        del graph.initializers[copy.name]
