"""A graph of one fixed shape: dynamic dimensions become numbers, and what was computed from them becomes constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass
from onnxscript.optimizer import optimize_ir

from toolkit.types import ModelSpec, Step, TensorSpec

__all__ = ["BATCH", "fix_shapes", "fixed_sizes", "fixed_spec"]

BATCH = "batch"
_LARGEST_FOLDED = 1 << 22
"""Elements of a constant that may be computed ahead: an attention mask of 2,048 positions, not a weight of a model."""


def fixed_sizes(spec: ModelSpec) -> dict[str, int]:
    """The one size of each dynamic dimension: a single row, and of all others what engines are tuned for."""
    return {name: 1 if name == BATCH else dim.opt for name, dim in spec.dims.items()}


def fixed_spec(spec: ModelSpec) -> ModelSpec:
    """The spec with numbers for the names of dimensions, as the engine takes and answers."""
    sizes = fixed_sizes(spec)
    inputs, outputs = (tuple(_fixed(tensor, sizes) for tensor in tensors) for tensors in (spec.inputs, spec.outputs))
    return replace(spec, inputs=inputs, outputs=outputs)


def fix_shapes(model: ir.Model, spec: ModelSpec) -> list[Step]:
    """Give the inputs their one size and fold all arithmetic on shapes, in place; functions must be inlined before."""
    before = model.graph.num_nodes()
    sizes = fixed_sizes(spec)
    _number_all(model.graph, sizes)
    optimize_ir(model, input_size_limit=_LARGEST_FOLDED, output_size_limit=_LARGEST_FOLDED, should_fold=_folds)
    _register_constants(model.graph)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    told = ", ".join(f"{name} {size}" for name, size in sizes.items())
    folded = before - model.graph.num_nodes()
    return [Step("lower", "nodes folded away", folded, f"the shape is fixed: {told}")] if told else []


def _register_constants(graph: ir.Graph) -> None:
    """onnxscript 0.7 folds some shapes to constants that nodes read and the graph does not list."""
    for node in graph:
        for value in node.inputs:
            constant = value is not None and value.const_value is not None and value.producer() is None
            if value is not None and constant and graph.initializers.get(str(value.name)) is not value:
                graph.register_initializer(value)


def _folds(node: ir.Node) -> bool | None:
    """What dequantizes or widens a weight stays: it is why the file is small."""
    return False if node.op_type in ("DequantizeLinear", "QuantizeLinear") or _widens(node) else None


def _widens(node: ir.Node) -> bool:
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source is not None and source.dtype == ir.DataType.FLOAT16


def _fixed(tensor: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    shape = tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in tensor.shape)
    return replace(tensor, shape=shape)


def _number_all(graph: ir.Graph, sizes: Mapping[str, int]) -> None:
    """Inputs get numbers; shapes of all else are forgotten, to be inferred anew from them."""
    for value in graph.inputs:
        if value.shape is not None:
            dims = [dim if isinstance(dim, int) else sizes.get(str(dim.value), dim) for dim in value.shape]
            value.shape = ir.Shape(dims)
    for node in graph:
        for value in node.outputs:
            value.shape = None
