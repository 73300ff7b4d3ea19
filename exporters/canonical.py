"""Canonical form: the exporter's graph with the names, dimensions and metadata that the rest of the line relies on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from exporters.fused_attention.node import attention_nodes
from exporters.rotary import give_rotary_caches_a_batch
from toolkit import __version__
from toolkit.errors import StageError
from toolkit.types import ModelSpec
from toolkit.weight_names import WRAPPERS, canonical_weight

__all__ = ["canonicalise", "module_path"]

_SCOPES = "pkg.torch.onnx.name_scopes"


def canonicalise(model: ir.Model, spec: ModelSpec) -> int:
    """Rename dimensions and weights, drop what names this machine's files; answer the number of FusedAttention nodes.

    Raises StageError where a dimension that `spec` calls dynamic became a constant in the capture.
    """
    # torch may call an inner value what the spec calls an output, as `embedding`.
    NameFixPass()(model)
    _name_dimensions(model, spec)
    _strip_metadata(model)
    _name_weights(model)
    give_rotary_caches_a_batch(model)
    model.graph.name = spec.name
    model.producer_name, model.producer_version = "toolkit", __version__
    return len(attention_nodes(model))


def module_path(node: ir.Node) -> str:
    """The path of the PyTorch module that the node came from, as `encoder.layer.0.attention.self`, or nothing."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (SyntaxError, ValueError):
        scopes = []
    return next((str(scope) for scope in reversed(scopes) if scope), "")


def _name_dimensions(model: ir.Model, spec: ModelSpec) -> None:
    names: dict[str, str] = {}
    for value, tensor in zip(model.graph.inputs, spec.inputs, strict=True):
        for axis, size in enumerate(tensor.shape):
            if isinstance(size, str):
                names[_symbol(value, axis, size)] = size
    for tensor_value in _all_values(model):
        if tensor_value.shape is not None:
            tensor_value.shape = _renamed(tensor_value.shape, names)
    # The capture knows a present's length as a sum; its name is what the next step's inputs are called by.
    for value, tensor in zip(model.graph.outputs, spec.outputs, strict=True):
        value.shape = ir.Shape(list(tensor.shape))


def _symbol(value: ir.Value, axis: int, name: str) -> str:
    dim = value.shape[axis] if value.shape is not None else None
    if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
        return str(dim.value)
    raise StageError(
        "export",
        f"dimension '{name}' of input '{value.name}' became the constant {dim} in the capture",
        hint="The model computes with this size as a number; it cannot be dynamic.",
    )


def _renamed(shape: ir.Shape, names: Mapping[str, str]) -> ir.Shape:
    return ir.Shape([dim if isinstance(dim, int) else _rename(str(dim.value), names) for dim in shape])


def _rename(expression: str, names: Mapping[str, str]) -> str | None:
    if expression == "None":
        return None
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match.group(), match.group()), expression)


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs


def _strip_metadata(model: ir.Model) -> None:
    """Stack traces hold paths of the exporting machine, so equal exports would differ in bytes."""
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(_SCOPES)
        node.metadata_props.clear()
        node.meta.clear()
        if scopes is not None:
            node.metadata_props[_SCOPES] = repr(_module_scopes(scopes))
    for value in _all_values(model):
        value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _module_scopes(scopes: str) -> list[str]:
    """The exporter's list ends with the operator's own name; the modules come before it."""
    return [path for scope in ast.literal_eval(scopes)[:-1] if (path := _shorten(scope))]


def _shorten(scope: str) -> str:
    """A module's path as `canonical_weight` has a weight's; the wrappers themselves have none."""
    return canonical_weight(f"{scope}.").removesuffix(".")


def _name_weights(model: ir.Model) -> None:
    """Folding a Linear's transpose leaves its weight anonymous; give it back the module's name."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        users = {use.node for use in value.uses()}
        name = value.name or ""
        if name.startswith("val_") and len(users) == 1:
            (user,) = users
            path = module_path(user)
            if user.op_type in {"MatMul", "Gemm"} and path and f"{path}.weight" not in graph.initializers:
                _rename_initializer(graph, value, f"{path}.weight")
        elif name.startswith(WRAPPERS):
            short = canonical_weight(name)
            if short not in graph.initializers:
                _rename_initializer(graph, value, short)


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    del graph.initializers[value.name]
    value.name = name
    if value.const_value is not None and hasattr(value.const_value, "name"):
        value.const_value.name = name
    graph.initializers[name] = value
