"""bfloat16 in float32: each operator computes in float32, and its result is rounded to bfloat16 and back.

That is what bfloat16 arithmetic means where the hardware accumulates in float32, as NVIDIA's tensor cores do. Weights
stay bfloat16 in their file and are widened when ONNX Runtime opens the graph.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["emulate_bfloat16"]

_FULL, _SHORT = ir.DataType.FLOAT, ir.DataType.BFLOAT16

_EXACT = frozenset(
    {
        "Abs", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max",
        "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ScatterElements", "ScatterND",
        "Slice", "SpaceToDepth", "Split", "Squeeze", "TensorScatter", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that only move or choose numbers: what they read is rounded already."""

_TYPED = frozenset({"Cast", "Constant", "ConstantOfShape"})
"""Operators whose attributes, not their inputs, make the output bfloat16; the CPU provider has these."""


def emulate_bfloat16(model: ir.Model) -> None:
    """Rewrite the graph in place; inputs and outputs of the graph keep their types."""
    graph = model.graph
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    outputs = [value for value in graph.outputs if value.dtype == _SHORT]
    for node in nodes:
        for value in node.outputs:
            if value.dtype == _SHORT:
                _emulate(node, value)
    first = graph[0]
    for value in [*graph.initializers.values(), *graph.inputs]:
        if value.dtype == _SHORT:
            readers = list(value.uses())
            _redirect(readers, _cast(first, value, _FULL, before=True))
    for value in outputs:
        _narrow(graph, value)


def _emulate(node: ir.Node, value: ir.Value) -> None:
    readers = list(value.uses())
    if node.op_type in _TYPED:
        _redirect(readers, _cast(node, value, _FULL))
        return
    value.dtype = _FULL
    if node.op_type not in _EXACT and readers:
        rounded = _cast(node, value, _SHORT)
        producer = rounded.producer()
        if producer is not None:
            _redirect(readers, _cast(producer, rounded, _FULL))


def _narrow(graph: ir.Graph, value: ir.Value) -> None:
    """A graph output is bfloat16 again, under its own name."""
    producer = value.producer()
    if producer is None or value.dtype == _SHORT:
        return
    index, name = list(graph.outputs).index(value), value.name
    value.name = f"{name}.wide"
    narrow = _cast(producer, value, _SHORT)
    narrow.name = name
    graph.outputs[index] = narrow


def _redirect(readers: list[ir.Usage], value: ir.Value) -> None:
    for reader, index in readers:
        reader.replace_input_with(index, value)


def _cast(anchor: ir.Node, value: ir.Value, dtype: ir.DataType, *, before: bool = False) -> ir.Value:
    """The value in `dtype`, by a node right after `anchor`, or before it."""
    made = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}.{dtype.name}.cast")
    output = made.outputs[0]
    output.name, output.dtype, output.shape = f"{value.name}.{dtype.name}", dtype, value.shape
    if anchor.graph is None:
        raise ValueError(f"node {anchor.name} is in no graph")
    (anchor.graph.insert_before if before else anchor.graph.insert_after)(anchor, made)
    return output
