"""Going through a program once: PyTorch would trace it again, to decompose and promote where there is nothing to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from onnxscript.function_libs.torch_lib import registration
from torch._C import DispatchKey
from torch._ops import OperatorBase, OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from exporters.contract import arguments_of

__all__ = ["decomposed_where_needed"]

_aten = torch.ops.aten
_TRANSLATED = frozenset(
    {_aten.contiguous.default, _aten.dropout.default, _aten.expand_as.default, _aten.flatten.using_ints,
     _aten.layer_norm.default, _aten.linear.default, _aten.reshape.default, _aten.sym_size.int}
)  # fmt: skip
"""Composites that are translated to what their parts would be, though PyTorch takes most of these always apart."""
_ASSERTIONS = ("aten::_assert", "aten::sym_constrain_range")
"""Not exported."""
_BETWEEN_TYPES = frozenset({_aten._to_copy.default, _aten.embedding.default})
"""Operators whose inputs and outputs differ in type by what they are."""
_PROMOTION = frozenset({"aten::_to_copy", "aten::scalar_tensor"})
"""What the exporter puts in where operands differ in type; it may also take another overload of an operator."""


@contextmanager
def decomposed_where_needed(program: ExportedProgram, own: Collection[Any] = ()) -> Iterator[None]:
    """Within it, `torch.onnx.export` leaves the program as it is where its decompositions would change nothing.

    They replace what is not translated, write changes in place as new tensors, and inline graphs within the graph. A
    program without any of those, all of whose operators are translated by torchlib or are among `own`, comes out as it
    went in, a second trace later; and a third one later from the promotion of types, where no operator mixes any. What
    torchlib translates besides is not even looked at.
    """
    import onnxscript.function_libs.torch_lib.ops  # noqa: F401 - registers them

    # Before anything: where tensors are written in place, it matters which are views of which.
    if any(_writes(node.target) for node in _calls(program)):
        yield
        return
    _assert_nothing(program)
    _cast_plainly(program)
    operators = {node.target for node in _calls(program)} - set(own)
    if not all(_is_translated(operator) for operator in operators):
        yield
        return
    graph_module = program.graph_module
    program.__dict__["run_decompositions"] = lambda *_, **__: program
    if not any(_mixes_types(node) for node in _calls(program) if node.target not in own):
        graph_module.__dict__["modules"] = lambda: iter(())  # what the exporter's own passes go through
    try:
        with (
            _without_table(),
            _known_alone({_packet(_name(operator)) for operator in operators if isinstance(operator, OpOverload)}),
        ):
            yield
    finally:
        del program.__dict__["run_decompositions"]
        graph_module.__dict__.pop("modules", None)


@contextmanager
def _known_alone(names: set[str]) -> Iterator[None]:
    """Let torchlib have these of ATen's operators alone, in every overload: the exporter reads the source of each."""
    registry = registration.default_registry
    whole: dict[str, Any] | None = getattr(registry, "_registry", None)
    if whole is None:  # another release of onnxscript: all are looked at
        yield
        return
    registry._registry = {
        name: known for name, known in whole.items() if _packet(name) in names | _PROMOTION or name[:4] != "aten"
    }
    try:
        yield
    finally:
        registry._registry = whole


@contextmanager
def _without_table() -> Iterator[None]:
    """Let the exporter go without its table of decompositions, all of PyTorch's: nothing is looked up in it."""
    try:
        exporter: Any = import_module("torch.onnx._internal.exporter._decomp")
        whole = exporter.create_onnx_friendly_decomposition_table
    except (ImportError, AttributeError):  # another release of PyTorch: it is made
        yield
        return
    exporter.create_onnx_friendly_decomposition_table = lambda _: {}
    try:
        yield
    finally:
        exporter.create_onnx_friendly_decomposition_table = whole


def _assert_nothing(program: ExportedProgram) -> None:
    for node in list(program.graph.nodes):
        if isinstance(node.target, OpOverload) and _name(node.target).startswith(_ASSERTIONS):
            program.graph.erase_node(node)


def _writes(operator: Any) -> bool:
    return isinstance(operator, OpOverload) and operator._schema.is_mutable


def _mixes_types(node: Node) -> bool:
    """Whether types may be promoted: never where all tensors that go in and out have one, and no size is among them."""
    if _takes_a_size_as_number(node):
        return True
    tensors = [value for each in (node, *node.all_input_nodes) for value in tree_leaves(each.meta.get("val"))]
    kinds = {value.dtype for value in tensors if isinstance(value, torch.Tensor)}
    return len(kinds) > 1 and node.target not in _BETWEEN_TYPES


def _takes_a_size_as_number(node: Node) -> bool:
    """As in `x / x.shape[1]`: a dynamic size is an integer in the graph; a number written in the code is of no type."""
    if not isinstance(node.target, OpOverload):
        return False
    types = {argument.name: str(argument.type) for argument in node.target._schema.arguments}
    return any(
        isinstance(value, Node)
        and isinstance(value.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool)
        and types[name] in ("Tensor", "number")
        for name, value in arguments_of(node, node.target).items()
    )


def _cast_plainly(program: ExportedProgram) -> None:
    """`Tensor.to` has many forms, none of which is translated; what is left of each in a graph is a cast or nothing."""
    for node in [node for node in program.graph.nodes if str(node.target).startswith("aten.to.")]:
        source, kind = node.all_input_nodes[0], node.meta["val"].dtype
        if source.meta["val"].dtype != kind:
            node.target, node.args, node.kwargs = _aten._to_copy.default, (source,), {"dtype": kind}
        elif any(user.op == "output" for user in node.users):  # which is known by this node's name
            node.target, node.args, node.kwargs = _aten.clone.default, (source,), {}
        else:
            node.replace_all_uses_with(source)
            program.graph.erase_node(node)
    program.graph_module.recompile()


def _is_translated(operator: Any) -> bool:
    if not isinstance(operator, OpOverload):
        return not isinstance(operator, OperatorBase)
    if _name(operator) not in registration.default_registry:
        return False
    # Composites that no table holds are taken apart whatever is translated.
    composite = operator.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    return not composite or operator in _TRANSLATED or operator in _in_tables()


def _name(operator: OpOverload[Any, Any]) -> str:
    """As torchlib calls it: `aten::add.Tensor`, `aten::gelu`."""
    name: str = operator.name()  # type: ignore[no-untyped-call]
    return name


def _packet(name: str) -> str:
    return name.partition(".")[0]


@lru_cache(maxsize=1)
def _in_tables() -> frozenset[Any]:
    return frozenset(torch.export.default_decompositions())


def _calls(program: ExportedProgram) -> Iterator[Node]:
    graphs = (part for part in program.graph_module.modules() if isinstance(part, GraphModule))
    return (node for graph in graphs for node in graph.graph.nodes if node.op == "call_function")
