"""bfloat16 or float16 in float32: each operator computes in float32, and its result is rounded to 16 bits and back.

That is what 16-bit arithmetic means where the hardware accumulates in float32, as NVIDIA's tensor cores do. What passes
the type's range becomes infinite, as it does there. Weights stay 16 bits wide in their file and are widened when ONNX
Runtime opens the graph.

An attention node is one operator: its scores and softmax are float32, as in fused kernels, and only its answer is
rounded. Elsewhere a runtime that fuses operators may round less often than this. Not emulated: sums that hardware
keeps in 16 bits, denormal numbers that it flushes to zero.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["emulate_rounding"]

_FULL = ir.DataType.FLOAT

_EXACT = frozenset(
    {
        "Abs", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
        "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape",
        "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "TensorScatter", "Tile",
        "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that only move or choose numbers: what they read is rounded already."""

_TYPED = frozenset({"Cast", "Constant", "ConstantOfShape"})
"""Operators whose attributes, not their inputs, make the output 16 bits wide; the CPU provider has these."""


def emulate_rounding(model: ir.Model, dtype: ir.DataType) -> None:
    """Rewrite what is of `dtype`, a float of 16 bits, in place.

    Inputs and outputs of the graph keep their names, and their types but for bfloat16, of which ONNX Runtime makes no
    arrays in Python: those become float32, what is fed is rounded first, and what is answered is rounded already.
    """
    graph = model.graph
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    outputs = [value for value in graph.outputs if value.dtype == dtype]
    for node in nodes:
        for value in node.outputs:
            if value.dtype == dtype:
                _round(node, value, dtype)
    first, without_arrays = graph[0], dtype == ir.DataType.BFLOAT16
    for value in [*graph.initializers.values(), *graph.inputs]:
        if value.dtype == dtype:
            readers, source = list(value.uses()), value
            if without_arrays and value.is_graph_input():
                value.dtype = _FULL
                source = _cast(first, value, dtype, before=True)
            _redirect(readers, _cast(first, source, _FULL, before=True))
    for value in outputs:
        if value.dtype != dtype:
            _publish(graph, value, dtype)
    if without_arrays:
        for value in [value for value in graph.outputs if value.dtype == dtype]:
            _publish(graph, value, _FULL)


def _round(node: ir.Node, value: ir.Value, dtype: ir.DataType) -> None:
    readers = list(value.uses())
    if node.op_type in _TYPED:
        _redirect(readers, _cast(node, value, _FULL))
        return
    value.dtype = _FULL
    if node.op_type not in _EXACT and readers:
        rounded = _cast(node, value, dtype)
        producer = rounded.producer()
        if producer is not None:
            _redirect(readers, _cast(producer, rounded, _FULL))


def _publish(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    """A graph output in `dtype`, under its own name."""
    producer = value.producer()
    if producer is None:
        return
    index, name, was = list(graph.outputs).index(value), value.name, value.dtype
    value.name = f"{name}.{was.name if was is not None else 'before'}"
    published = _cast(producer, value, dtype)
    published.name = name
    graph.outputs[index] = published


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
