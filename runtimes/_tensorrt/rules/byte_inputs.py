"""Images fed as bytes: TensorRT takes uint8 at its inputs, and nothing but a Cast may read them there."""

from __future__ import annotations

import onnx_ir as ir

from runtimes._standard.nodes import Writer
from toolkit.types import Step

__all__ = ["cast_byte_inputs"]

_MOVES = frozenset(
    {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


def cast_byte_inputs(model: ir.Model) -> list[Step]:
    """Cast a uint8 input to int32 at once where it is only moved about before the model casts it; exact.

    Inputs that are computed with as bytes, which wrap around at 256, are left to the preflight.
    """
    writer, count = Writer(model), 0
    for value in model.graph.inputs:
        moved = _moved(value) if value.dtype == ir.DataType.UINT8 else None
        if moved:
            _cast(writer, model.graph, value, moved)
            count += 1
    if not count:
        return []
    return [Step("lower", "uint8 inputs cast to int32", count, "TensorRT moves and computes no bytes")]


def _moved(value: ir.Value) -> list[ir.Node] | None:
    """The nodes that move the bytes about, before the casts; None where anything else reads them."""
    found: list[ir.Node] = []
    waiting = [value]
    while waiting:
        source = waiting.pop()
        if source.is_graph_output():
            return None
        for reader, index in source.uses():
            if reader.op_type == "Cast" and reader.graph is not None:
                continue
            if reader.op_type not in _MOVES or reader.domain or index != 0 or reader.graph is not _home(value):
                return None
            found.append(reader)
            waiting.extend(reader.outputs)
    return found


def _home(value: ir.Value) -> ir.Graph | ir.Function | None:
    graph: ir.Graph | ir.Function | None = value.graph
    return graph


def _cast(writer: Writer, graph: ir.Graph, value: ir.Value, moved: list[ir.Node]) -> None:
    readers = {reader for reader, _ in value.uses()}
    first = next(node for node in graph if node in readers)
    wide = writer.node(first, "Cast", [value], ir.DataType.INT32, {"to": int(ir.DataType.INT32)})
    wide.shape = value.shape
    for node in moved:
        node.replace_input_with(0, wide if node.inputs[0] is value else node.inputs[0])
        node.outputs[0].dtype = ir.DataType.INT32
