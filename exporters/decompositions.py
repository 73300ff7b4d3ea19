"""Decomposing only what needs it: to do so, PyTorch traces the whole program a second time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch._C import DispatchKey
from torch._ops import OperatorBase, OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

__all__ = ["decomposed_where_needed"]

_Table = Mapping[Any, Callable[..., Any]]
_aten = torch.ops.aten
_TRANSLATED = frozenset(
    {_aten.contiguous.default, _aten.dropout.default, _aten.expand_as.default, _aten.flatten.using_ints,
     _aten.reshape.default}
)  # fmt: skip
"""Composites that no table can hold, and that `torch.onnx` translates to what their parts would be."""


@contextmanager
def decomposed_where_needed(program: ExportedProgram) -> Iterator[None]:
    """Within it, `torch.onnx.export` leaves the program as it is where its decompositions would change nothing.

    They replace what their table names and what only a trace can take apart, write changes in place as new tensors,
    and inline graphs within the graph. A program without any of those comes out as it went in, a second trace later.
    """
    _cast_plainly(program)
    whole = program.run_decompositions
    given = program.__dict__
    given["run_decompositions"] = partial(_decomposed, program, whole)
    try:
        yield
    finally:
        del given["run_decompositions"]


def _decomposed(
    program: ExportedProgram, whole: Callable[..., ExportedProgram], table: _Table | None = None, **options: Any
) -> ExportedProgram:
    if table is None or options or any(_needs(node.target, table) for node in _calls(program)):
        return whole(table, **options)
    return program


def _cast_plainly(program: ExportedProgram) -> None:
    """`Tensor.to` has many forms, none of which is translated; what is left of each in a graph is a cast or nothing."""
    for node in [node for node in program.graph.nodes if str(node.target).startswith("aten.to.")]:
        source, kind = node.all_input_nodes[0], node.meta["val"].dtype
        if source.meta["val"].dtype == kind:
            node.replace_all_uses_with(source)
            program.graph.erase_node(node)
        else:
            node.target, node.args, node.kwargs = torch.ops.aten._to_copy.default, (source,), {"dtype": kind}
    program.graph_module.recompile()


def _needs(operator: Any, table: _Table) -> bool:
    if not isinstance(operator, OpOverload):
        return isinstance(operator, OperatorBase)
    if operator in table or operator._schema.is_mutable:
        return True
    # A composite is left out of the table because the exporter translates it, or because no table can hold it.
    composite = operator.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    return composite and operator not in _TRANSLATED and operator not in _in_tables()


@lru_cache(maxsize=1)
def _in_tables() -> frozenset[Any]:
    return frozenset(torch.export.default_decompositions())


def _calls(program: ExportedProgram) -> Iterator[Node]:
    graphs = (part for part in program.graph_module.modules() if isinstance(part, GraphModule))
    return (node for graph in graphs for node in graph.graph.nodes if node.op == "call_function")
