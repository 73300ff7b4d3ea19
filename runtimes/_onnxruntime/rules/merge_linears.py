"""Linears that read the same tensor and meet again become one: query, key and value; gate and up.

One product over more columns keeps all threads busy for longer than several over few, and `GroupQueryAttention` takes
query, key and value packed in one tensor. Works on fp32 weights and on weights in blocks, before these are packed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.rules.head_split import int_dim
from toolkit.types import Step

__all__ = ["merge_linears"]

_ACTIVATIONS = frozenset({"Gelu", "QuickGelu", "Relu", "Sigmoid", "Silu", "Swish", "Tanh"})


def merge_linears(model: ir.Model, emit: Emitter) -> list[Step]:
    """Merge what feeds each attention, and each gate with what it is multiplied by."""
    # Head splits that an earlier rule replaced would still count as readers.
    RemoveUnusedNodesPass()(model)
    order = {node: index for index, node in enumerate(model.graph)}
    rule = _Rule(emit, order)
    packed = sum(rule.pack(node) for node in order if node.op_type == "GroupQueryAttention")
    gated = sum(rule.gate(node) for node in order if node.op_type == "Mul" and node.graph is not None)
    steps = [
        Step("lower", "query, key and value in one tensor", packed, "one product instead of three"),
        Step("lower", "gate and up in one Linear", gated, "one product instead of two"),
    ]
    return [step for step in steps if step.count]


class _Rule:
    def __init__(self, emit: Emitter, order: dict[ir.Node, int]) -> None:
        self._emit, self._order = emit, order

    def pack(self, node: ir.Node) -> bool:
        """Let the attention read one tensor [B, S, (Hq + 2 Hkv) · D], made for it or there already."""
        roots = [value for value in node.inputs[:3] if value is not None]
        if len(roots) != 3 or len(set(roots)) != 3:
            return False
        whole = _cut_from(roots)
        if whole is None and all(_uses(root) == 1 for root in roots) and _mergeable(roots):
            whole = self._merged(roots, self._first(roots))
        if whole is None:
            return False
        for index, value in enumerate((whole, None, None)):
            node.replace_input_with(index, value)
        for root in roots:
            _remove_unused(root)
        return True

    def gate(self, node: ir.Node) -> bool:
        """Merge the two Linears whose results `node` multiplies, one of them through an activation."""
        left, right = node.inputs
        if left is None or right is None:
            return False
        pairs = ((_before_activation(left), right), (_before_activation(right), left))
        for gate, up in pairs:
            if gate is not None and gate is not up and _mergeable([gate, up]):
                self._split([gate, up])
                return True
        return False

    def _split(self, roots: list[ir.Value]) -> None:
        anchor = self._first(roots)
        sizes = self._emit.constant(np.asarray([_width(root) for root in roots], np.int64))
        whole = self._merged(roots, anchor)
        made = self._emit.before(anchor, "Split", [whole, sizes], {"axis": -1}, outputs=len(roots))
        for old, new in zip(roots, made.outputs, strict=True):
            new.shape, new.type = old.shape, old.type
            self._emit.replace(old, new)
            _remove_unused(old)

    def _first(self, roots: Sequence[ir.Value]) -> ir.Node:
        nodes = [node for root in roots if (node := root.producer()) is not None]
        return min(nodes, key=lambda node: self._order[node])

    def _merged(self, values: Sequence[ir.Value], anchor: ir.Node) -> ir.Value:
        """The values side by side along the last axis; see `_mergeable`."""
        nodes = [value.producer() for value in values]
        first = nodes[0]
        if first is None:
            return self._joined(values, axis=0)
        columns = [[node.inputs[index] for node in nodes if node is not None] for index in range(2)]
        left, right = ([value for value in column if value is not None] for column in columns)
        if first.op_type == "Add":
            inputs = [self._merged(left, anchor), self._merged(right, anchor)]
        else:
            inputs = [left[0], self._weight(right, anchor)]
        made = self._emit.before(anchor, first.op_type, inputs).outputs[0]
        made.dtype = values[0].dtype
        if values[0].shape is not None:
            made.shape = ir.Shape([*list(values[0].shape)[:-1], sum(map(_width, values))])
        return made

    def _weight(self, values: Sequence[ir.Value], anchor: ir.Node) -> ir.Value:
        """Weights [K, N] side by side: constants, or what `DequantizeLinear` makes of constants."""
        nodes = [node for value in values if (node := value.producer()) is not None]
        if not nodes:
            return self._joined(values, axis=1)
        inputs = [
            self._joined([value for node in nodes if (value := node.inputs[index]) is not None], axis=1)
            for index in range(len(nodes[0].inputs))
        ]
        made = self._emit.before(anchor, "DequantizeLinear", inputs, dict(nodes[0].attributes)).outputs[0]
        made.dtype, made.shape = values[0].dtype, inputs[0].shape
        return made

    def _joined(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        tensors = [value.const_value for value in values if value.const_value is not None]
        shape = [int(size) for size in tensors[0].shape]
        shape[axis] = sum(int(tensor.shape[axis]) for tensor in tensors)
        lazy = ir.LazyTensor(lambda: _concatenated(tensors, axis), tensors[0].dtype, ir.Shape(shape))
        return self._emit.initializer(lazy, f"{values[0].name}.merged")


def _concatenated(tensors: Sequence[ir.TensorProtocol], axis: int) -> ir.TensorProtocol:
    joined = np.concatenate([tensor.numpy() for tensor in tensors], axis)
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()
    return ir.tensor(joined, dtype=tensors[0].dtype)


def _mergeable(values: Sequence[ir.Value]) -> bool:
    """Whether the values are Linears of one tensor, alike in kind: products, and sums of such or with biases."""
    nodes = [value.producer() for value in values]
    if all(node is None for node in nodes):
        return all(value.is_initializer() and value.shape is not None and value.shape.rank() == 1 for value in values)
    first = nodes[0]
    if first is None or first.domain or first.op_type not in {"Add", "MatMul"} or len(set(nodes)) != len(nodes):
        return False
    if any(node is None or node.op_type != first.op_type or node.domain for node in nodes):
        return False
    if any(value.is_graph_output() or not _width(value) for value in values):
        return False
    left, right = ([node.inputs[index] for node in nodes if node is not None] for index in range(2))
    if first.op_type == "MatMul":
        return all(value is left[0] for value in left) and _alike(right)
    return all(_inside(column) for column in (left, right))


def _inside(column: Sequence[ir.Value | None]) -> bool:
    values = [value for value in column if value is not None]
    once = all(_uses(value) == 1 for value in values if value.producer() is not None)
    return len(values) == len(column) and once and _mergeable(values)


def _alike(weights: Sequence[ir.Value | None]) -> bool:
    """Whether weights [K, N] can stand side by side: all constants of one type, or all in the same kind of blocks."""
    values = [value for value in weights if value is not None]
    nodes = [value.producer() for value in values]
    if all(node is None for node in nodes):
        return all(_is_matrix(value) and value.dtype == values[0].dtype for value in values)
    kinds = {_kind(node) for node in nodes}
    return len(kinds) == 1 and None not in kinds and len(set(nodes)) == len(nodes)


def _kind(node: ir.Node | None) -> tuple[object, ...] | None:
    if node is None or node.op_type != "DequantizeLinear" or not node.attributes.get_int("block_size", 0):
        return None
    if node.attributes.get_int("axis", 1) != 0 or any(value is None or not _is_matrix(value) for value in node.inputs):
        return None
    dtypes = tuple(value.dtype for value in node.inputs if value is not None)
    return (node.attributes.get_int("block_size", 0), *dtypes)


def _is_matrix(value: ir.Value) -> bool:
    return value.is_initializer() and value.shape is not None and value.shape.rank() == 2


def _before_activation(value: ir.Value) -> ir.Value | None:
    """What an activation was applied to, `x · Sigmoid(x)` included; None where there is none."""
    node = value.producer()
    if node is None:
        return None
    if node.op_type in _ACTIVATIONS:
        return node.inputs[0]
    if node.op_type != "Mul":
        return None
    first, second = node.inputs
    for plain, gated in ((first, second), (second, first)):
        above = gated.producer() if gated is not None else None
        if above is not None and above.op_type == "Sigmoid" and above.inputs[0] is plain:
            return plain
    return None


def _cut_from(roots: Sequence[ir.Value]) -> ir.Value | None:
    """The tensor whose last axis is exactly query, key and value, where a Split or three Slices took them from it."""
    nodes = [root.producer() for root in roots]
    first = nodes[0]
    if first is None or first.domain or first.inputs[0] is None:
        return None
    whole = first.inputs[0]
    if int_dim(whole, -1) != sum(int_dim(root, -1) or 0 for root in roots) or whole.shape is None:
        return None
    last = whole.shape.rank() - 1
    if first.op_type == "Split":
        in_order = all(root is output for root, output in zip(roots, first.outputs, strict=False))
        return whole if in_order and first.attributes.get_int("axis", 0) in {-1, last} else None
    starts = [_slice_start(node, whole, last) for node in nodes]
    widths = [_width(root) for root in roots]
    return whole if starts == [0, widths[0], widths[0] + widths[1]] else None


def _slice_start(node: ir.Node | None, whole: ir.Value, last: int) -> int | None:
    if node is None or node.op_type != "Slice" or node.inputs[0] is not whole or len(node.inputs) < 4:
        return None
    start, axes = (node.inputs[index] for index in (1, 3))
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    numbers = [value.const_value.numpy().tolist() if value and value.const_value else None for value in (start, axes)]
    if steps is not None and (steps.const_value is None or steps.const_value.numpy().tolist() != [1]):
        return None
    return int(numbers[0][0]) if numbers[0] and numbers[1] in ([last], [-1]) else None


def _width(value: ir.Value) -> int:
    """The size of the last axis; of a product whose shape nobody noted, what its weight says. 0 where unknown."""
    size = int_dim(value, -1)
    node = value.producer()
    if size is None and node is not None and node.op_type == "MatMul" and node.inputs[1] is not None:
        size = int_dim(node.inputs[1], -1)
    return size or 0


def _uses(value: ir.Value) -> int:
    return len(value.uses()) + int(value.is_graph_output())


def _remove_unused(value: ir.Value) -> None:
    """Remove what made the value, and what made only that."""
    node = value.producer()
    if node is None or node.graph is None or any(_uses(output) for output in node.outputs):
        return
    inputs = [each for each in node.inputs if each is not None]
    node.graph.remove(node, safe=True)
    for each in dict.fromkeys(inputs):
        _remove_unused(each)
