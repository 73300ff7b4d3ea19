"""A language model's cache as buffers of full length, written in place: `TensorScatter` of ONNX opset 24.

What is new in the graph's interface is `write_indices`, int64 [batch]: where each row's new tokens go. Cache inputs and
outputs have one shape, [batch, heads, length, size], in the dtype that attention computes in; `attention_mask` has a
column for every place of the buffer. TensorRT demands that the cache be an input and the present an output of the
network, that its length be fixed, and that both be bound to one address.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from exporters.fused_attention import FusedAttention, attention_nodes, read
from runtimes._standard.nodes import Writer, static_dim
from toolkit.cache_names import ATTENTION_MASK, WRITE_INDICES, is_past, is_present
from toolkit.errors import UnsupportedError
from toolkit.types import ModelSpec, TensorSpec

__all__ = ["StaticCache", "static_spec"]

_OPSET = 24
_LENGTH_AXIS = 2
_CONCAT = "Export with --kv-cache concat."


class StaticCache:
    """The buffers of one graph; `length` is how many positions they hold.

    Raises UnsupportedError for a graph that reads its cache or its mask in a way that a buffer does not serve.
    """

    def __init__(self, model: ir.Model, length: int) -> None:
        self._model, self._length = model, length
        self._mask = next((value for value in model.graph.inputs if value.name == ATTENTION_MASK), None)
        batch = model.graph.inputs[0].shape
        self.write_indices = ir.Value(
            name=WRITE_INDICES,
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([batch[0] if batch is not None else "batch"]),
        )
        # Of the operators of opset 23, only Attention and the casts got more than types in 24: inputs and attributes
        # that are optional, and that no rule here writes.
        model.opset_imports[""] = max(model.opset_imports.get("", 0), _OPSET)
        model.graph.inputs.append(self.write_indices)

    def prepare(self, writer: Writer, *, whole: bool = True) -> None:
        """Give whoever counts the new tokens in `attention_mask` only those, and the mask a column a place.

        With `whole` False the mask may end behind the new tokens, as far as the places are attended to.
        """
        if self._mask is None:
            return
        self._serve_new_tokens(writer, self._mask)
        if not whole:
            return
        columns = _dims(self._mask)[1]
        for value in _values(self._model.graph):
            if value.shape is not None and columns in value.shape.dims:
                value.shape = ir.Shape([self._length if dim == columns else dim for dim in value.shape])

    def join(self, writer: Writer, node: ir.Node, attention: FusedAttention) -> FusedAttention:
        """The attention over the whole buffers, with the node's new keys and values written into them."""
        pairs = (
            (attention.past_key, attention.key, attention.present_key),
            (attention.past_value, attention.value, attention.present_value),
        )
        key, value = (self._written(writer, node, *pair) for pair in pairs)
        return replace(attention, key=key, value=value)

    def _written(
        self, writer: Writer, node: ir.Node, past: ir.Value | None, new: ir.Value, present: ir.Value | None
    ) -> ir.Value:
        if past is None or present is None:
            raise UnsupportedError(f"attention '{node.name}' takes a past and answers no present", hint=_CONCAT)
        buffer, output = _buffer(node, past), _output(node, present)
        buffer.shape = ir.Shape(
            [self._length if axis == _LENGTH_AXIS else dim for axis, dim in enumerate(_dims(buffer))]
        )
        buffer.type = ir.TensorType(new.dtype or ir.DataType.FLOAT)
        attributes = {"axis": _LENGTH_AXIS, "mode": "linear"}
        written = writer.node(node, "TensorScatter", [buffer, new, self.write_indices], new.dtype, attributes)
        written.shape = buffer.shape
        self._publish(output, written)
        ir.convenience.replace_all_uses_with(present, written)
        return written

    def _publish(self, output: ir.Value, written: ir.Value) -> None:
        outputs = self._model.graph.outputs
        place = next(index for index, value in enumerate(outputs) if value is output)
        name, output.name = output.name, f"{output.name}.before"
        written.name, outputs[place] = name, written

    def _serve_new_tokens(self, writer: Writer, mask: ir.Value) -> None:
        attended = _ancestors([read(node).attn_mask for node in attention_nodes(self._model)])
        uses = [use for use in mask.uses() if use.node not in attended]
        odd = [use.node for use in uses if use.node.op_type not in ("Shape", "Slice")]
        odd += [use.node for use in mask.uses() if use.node in attended and use.node.op_type == "Shape"]
        if odd:
            raise UnsupportedError(
                f"{odd[0].op_type} '{odd[0].name}' reads {ATTENTION_MASK} for more than which keys there are",
                hint=_CONCAT,
            )
        if uses:
            new = self._new_tokens(writer, self._model.graph[0], mask)
            for use in uses:
                use.node.replace_input_with(use.idx, new)

    def _new_tokens(self, writer: Writer, anchor: ir.Node, mask: ir.Value) -> ir.Value:
        """The mask's columns of the new tokens, [batch, sequence]: read from where each row writes."""
        ids = next(value for value in self._model.graph.inputs if value.name == "input_ids")

        def ints(*numbers: int) -> ir.Value:
            return writer.constant(np.asarray(numbers, np.int64))

        def scalar(number: int) -> ir.Value:
            return writer.constant(np.asarray(number, np.int64))

        count = writer.node(anchor, "Shape", [ids], ir.DataType.INT64, {"start": 1, "end": 2})
        steps = writer.node(anchor, "Range", [scalar(0), writer.node(anchor, "Squeeze", [count, ints(0)]), scalar(1)])
        starts = writer.node(anchor, "Unsqueeze", [self.write_indices, ints(1)])
        places = writer.node(anchor, "Add", [starts, steps])
        new = writer.node(anchor, "GatherElements", [mask, places], mask.dtype, {"axis": 1})
        new.shape = ids.shape
        return new


def static_spec(spec: ModelSpec, model: ir.Model) -> ModelSpec:
    """The spec with the graph's own inputs and outputs, as whoever drives the engine must bind them."""
    return replace(spec, inputs=_specs(model.graph.inputs), outputs=_specs(model.graph.outputs))


def _specs(values: list[ir.Value]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(str(value.name), value.dtype.numpy().name, _sizes(value)) for value in values if value.dtype
    )


def _sizes(value: ir.Value) -> tuple[int | str, ...]:
    return tuple(dim if isinstance(dim, int) else str(dim.value) for dim in _dims(value))


def _dims(value: ir.Value) -> tuple[int | ir.SymbolicDim, ...]:
    if value.shape is None:
        raise UnsupportedError(f"'{value.name}' has no shape", hint="Export the model again.")
    return tuple(value.shape.dims)


def _buffer(node: ir.Node, past: ir.Value) -> ir.Value:
    """The graph input behind a past: itself, or what a cast to half precision reads."""
    cast = past.producer()
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else past
    alone = source is not None and len(source.uses()) == 1 and len(past.uses()) == 1
    if source is None or not alone or not source.is_graph_input() or not is_past(source.name or ""):
        raise UnsupportedError(
            f"attention '{node.name}' takes '{past.name}', which is more than a buffer of its own", hint=_CONCAT
        )
    if any(static_dim(source, axis) is None for axis in (1, 3)):
        raise UnsupportedError(f"'{source.name}' has no fixed number of heads or head size", hint=_CONCAT)
    return source


def _output(node: ir.Node, present: ir.Value) -> ir.Value:
    """The graph output that a present becomes: itself, or a cast of it, which nobody else reads."""
    casts = [use.node.outputs[0] for use in present.uses() if use.node.op_type == "Cast"]
    found = [value for value in (present, *casts) if value.is_graph_output() and is_present(value.name or "")]
    if len(found) != 1 or len(present.uses()) != len(casts) or any(cast.uses() for cast in casts):
        raise UnsupportedError(
            f"the present '{present.name}' of attention '{node.name}' is read by more than the next step", hint=_CONCAT
        )
    return found[0]


def _ancestors(values: list[ir.Value | None]) -> set[ir.Node]:
    """The nodes that the values are computed by."""
    found: set[ir.Node] = set()
    waiting = [value for value in values if value is not None]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting += [value for value in node.inputs if value is not None]
    return found


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
