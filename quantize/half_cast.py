"""Writing float16 or bfloat16 into a graph: weights cast as a stream, Cast nodes where the two precisions meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.fused_attention.node import is_attention
from quantize.half_precision import ATTENTION_MASK, HALF, Decision, half_inputs
from quantize.linears import add_initializer
from quantize.nodes import constant, map_tensor, new_node, unused_name

__all__ = ["MASK_FLOOR", "cast_graph"]

MASK_FLOOR = 32768.0
"""What a finite mask value is clamped to: its softmax is 0, and adding a score stays within fp16; bf16 has it."""


def cast_graph(model: ir.Model, decisions: Mapping[ir.Node, Decision], dtype: ir.DataType = HALF) -> int:
    """Rewrite the graph in place to the decided precisions; answer how many Cast nodes were added.

    `dtype` is float16 or bfloat16: that of the nodes whose decision is half.
    Graph inputs and outputs keep their dtype. A tensor read in its other precision is cast once for all readers.
    """
    return _Caster(model, decisions, dtype).run()


class _Caster:
    """Keeps one 16-bit and one fp32 form of each value."""

    def __init__(self, model: ir.Model, decisions: Mapping[ir.Node, Decision], dtype: ir.DataType) -> None:
        self._graph = model.graph
        self._dtype, self._suffix = dtype, "fp16" if dtype == HALF else "bf16"
        self._nodes = set(decisions)
        opset = model.opset_imports.get("", 0)
        self._wanted = {node: set(half_inputs(node, opset, dtype)) for node, made in decisions.items() if made.half}
        self._half: dict[ir.Value, ir.Value] = {}
        self._full: dict[ir.Value, ir.Value] = {}
        self._masks: dict[ir.Value, ir.Value] = {}
        self._casts = 0

    def run(self) -> int:
        # Read before any dtype changes, since what a node wants is read from the dtypes of its inputs.
        produced = [value for node in self._wanted for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        for value in produced:
            value.dtype = self._dtype
        for node, indices in self._wanted.items():
            for index in sorted(indices):
                self._read_half(node, index)
        for value in produced:
            self._serve_full(value)
        self._replace_constants()
        return self._casts

    def _read_half(self, node: ir.Node, index: int) -> None:
        value = node.inputs[index]
        if value is None or value.dtype == self._dtype:
            return
        is_mask = is_attention(node) and index == ATTENTION_MASK
        if constant(value) is not None:
            form = self._constant(value, is_mask)
        else:
            form = self._mask(value, node) if is_mask else self._cast(value, node, self._dtype)
        node.replace_input_with(index, form)

    def _constant(self, value: ir.Value, is_mask: bool) -> ir.Value:
        forms = self._masks if is_mask else self._half
        tensor = value.const_value
        if value not in forms and tensor is not None:
            bound, dtype = _bounded if is_mask else np.asarray, self._dtype
            lazy = ir.LazyTensor(
                lambda: ir.tensor(map_tensor(tensor, lambda array: bound(array).astype(dtype.numpy())), dtype=dtype),
                dtype=dtype,
                shape=ir.Shape(tensor.shape),
            )
            forms[value] = add_initializer(self._graph, f"{value.name}_{self._suffix}", lazy)
        return forms[value]

    def _mask(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """Clamp finite biases and keep -inf, so that a row with no key at all still gives zeros."""
        if value not in self._masks:
            name = value.name or "mask"
            floor = add_initializer(self._graph, f"{name}_floor", ir.tensor(np.float32(-MASK_FLOOR)))
            ceiling = add_initializer(self._graph, f"{name}_ceiling", ir.tensor(np.float32(MASK_FLOOR)))
            clip = self._new("Clip", [value, floor, ceiling], f"{name}_clamped", node)
            clamped = self._place(clip, ir.DataType.FLOAT, value.shape)
            is_inf = self._new("IsInf", [value], f"{name}_forbidden", node, detect_positive=0)
            infinite = self._place(is_inf, ir.DataType.BOOL, value.shape)
            where = self._new("Where", [infinite, value, clamped], f"{name}_bounded", node)
            bounded = self._place(where, ir.DataType.FLOAT, value.shape)
            self._masks[value] = self._cast(bounded, node, self._dtype)
        return self._masks[value]

    def _cast(self, value: ir.Value, origin: ir.Node, dtype: ir.DataType) -> ir.Value:
        half = dtype == self._dtype
        forms = self._half if half else self._full
        if value not in forms:
            cast = self._new("Cast", [value], f"{value.name}_{self._suffix if half else 'fp32'}", origin, to=int(dtype))
            forms[value] = self._place(cast, dtype, value.shape)
            self._casts += 1
        return forms[value]

    def _new(
        self, op_type: str, inputs: list[ir.Value | None], output: str, origin: ir.Node, **attributes: Any
    ) -> ir.Node:
        return new_node(op_type, inputs, unused_name(self._graph, output), origin, **attributes)

    def _place(self, node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
        """Put the node right after the last of its inputs is computed."""
        node.outputs[0].dtype, node.outputs[0].shape = dtype, shape
        last = _last_producer(node.inputs)
        if last is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(last, node)
        return node.outputs[0]

    def _serve_full(self, value: ir.Value) -> None:
        """Give the readers that stayed in fp32, and the graph's outputs, an fp32 form of a value of 16 bits."""
        producer = value.producer()
        if producer is None:
            return
        for use in list(value.uses()):
            inner = use.node.graph is not self._graph
            if inner or (use.node in self._nodes and use.idx not in self._wanted.get(use.node, ())):
                use.node.replace_input_with(use.idx, self._cast(value, producer, ir.DataType.FLOAT))
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._publish(index, value, producer)

    def _publish(self, index: int, value: ir.Value, producer: ir.Node) -> None:
        """The fp32 form takes the output's name."""
        full = self._cast(value, producer, ir.DataType.FLOAT)
        name, value.name = value.name, unused_name(self._graph, f"{value.name}_half")
        full.name = name
        self._graph.outputs[index] = full

    def _replace_constants(self) -> None:
        """A weight that nobody reads in fp32 any more leaves the graph, and its 16-bit form takes its name."""
        for value, form in (*self._half.items(), *self._masks.items()):
            name = value.name
            if name and constant(value) is not None and not value.uses() and not value.is_graph_output():
                self._graph.initializers.pop(name, None)
                form.name = name


def _last_producer(inputs: Iterable[ir.Value | None]) -> ir.Node | None:
    producers = [value.producer() for value in inputs if value is not None]
    return next((producer for producer in reversed(producers) if producer is not None), None)


def _bounded(mask: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.isneginf(mask), mask, np.clip(mask, -MASK_FLOOR, MASK_FLOOR))
