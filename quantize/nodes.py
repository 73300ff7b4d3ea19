"""What schemes need to know of an `onnx_ir` graph: module paths, constants, metadata of new nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from exporters import canonical

__all__ = [
    "constant",
    "keep_in_fp32",
    "kept_in_fp32",
    "lift_constants",
    "map_tensor",
    "module_path",
    "new_node",
    "unused_name",
]

_PRECISION = "toolkit.precision"
"""The node's metadata that holds the precision which the recipe gave it, where a later stage must know."""

_T = TypeVar("_T")


def module_path(node: ir.Node) -> str:
    """The PyTorch module that a node came from, as `encoder.layer.0.attention.q_proj`; else the node's name.

    Canonical graphs hold the scopes from the outermost module inwards.
    """
    return canonical.module_path(node) or node.name or node.op_type


def keep_in_fp32(node: ir.Node) -> None:
    """Mark a node that the recipe names fp32, so that no later stage casts it to half precision."""
    node.metadata_props[_PRECISION] = "fp32"


def kept_in_fp32(node: ir.Node) -> bool:
    """Whether the recipe names the node fp32."""
    return bool(node.metadata_props.get(_PRECISION) == "fp32")


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer, or None for anything that is computed or fed."""
    if value is None or value.is_graph_input() or not value.is_initializer():
        return None
    return value.const_value


def lift_constants(model: ir.Model) -> None:
    """Turn `Constant` nodes into initializers, so that a weight has one form only."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def map_tensor(tensor: ir.TensorProtocol, function: Callable[[NDArray[Any]], _T]) -> _T:
    """Answer `function(array)`, then unmap the weight's file so that its pages do not stay with us.

    `function` must not keep a view of the array.
    """
    result = function(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return result


def new_node(op_type: str, inputs: list[ir.Value | None], output: str, origin: ir.Node, **attributes: Any) -> ir.Node:
    """A node of the default domain with one output, which carries the metadata of `origin`."""
    made = ir.node(op_type, inputs=inputs, attributes=attributes, name=f"{output}_node")
    made.outputs[0].name = output
    made.metadata_props.update(origin.metadata_props)
    return made


def unused_name(graph: ir.Graph, wanted: str) -> str:
    """`wanted`, or the first of `wanted_2`, `wanted_3`, … that no value of the graph has."""
    taken = _names(graph)
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def _names(graph: ir.Graph) -> set[str]:
    produced = {value.name for node in graph.all_nodes() for value in node.outputs if value.name}
    fed = {value.name for value in graph.inputs if value.name}
    return produced | fed | set(graph.initializers)
