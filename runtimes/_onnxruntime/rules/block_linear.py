"""Weights quantized in blocks to `com.microsoft::MatMulNBits`, and such embedding tables to `GatherBlockQuantized`.

A table that is also the head's weight is written to disk once: both operators read rows of blocks, packed alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from runtimes._onnxruntime.emit import Emitter
from toolkit.types import Step

__all__ = ["INT8_ACTIVATIONS", "lower_block_linears"]

INT8_ACTIVATIONS = 4
"""`accuracy_level` that lets the kernel round activations to int8, block by block; 0 keeps them as they are."""

_LINEAR, _TABLE = "MatMulNBits", "GatherBlockQuantized"
_BITS = {ir.DataType.INT4: 4, ir.DataType.UINT4: 4, ir.DataType.INT8: 8, ir.DataType.UINT8: 8}
_SMALLEST_BLOCK = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """Integers with blocks of `size` along `axis`: [K, N] along 0 for a Linear, [V, K] along 1 for a table."""

    integers: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    axis: int
    size: int
    bits: int

    @property
    def rows(self) -> int:
        return self._dim(1 - self.axis)

    @property
    def columns(self) -> int:
        return self._dim(self.axis)

    def _dim(self, axis: int) -> int:
        shape = self.integers.shape
        return int(shape[axis]) if shape is not None else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Packed:
    """uint8 blocks [rows, columns / size, size · bits / 8], scales [rows, columns / size], zero points or None."""

    weight: ir.Value
    scales: ir.Value
    zeros: ir.Value | None


def lower_block_linears(model: ir.Model, emit: Emitter, accuracy_level: int = INT8_ACTIVATIONS) -> list[Step]:
    """Replace every MatMul and Gather that reads such a weight; what does not fit stays as `DequantizeLinear`.

    Weights are packed one at a time, while the file is written.
    """
    rule = _Rule(emit, accuracy_level)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and not node.domain:
            rule.apply(node)
    return rule.steps()


class _Rule:
    def __init__(self, emit: Emitter, accuracy_level: int) -> None:
        self._emit, self._accuracy_level = emit, accuracy_level
        self._linears: dict[int, int] = {}
        self._tables = self._shared = self._biases = self._left = 0

    def apply(self, node: ir.Node) -> None:
        stored = node.inputs[0]
        if not node.attributes.get_int("block_size", 0) or stored is None or stored.const_value is None:
            return  # with blocks, but computed: an activation
        blocks = _read(node)
        linears, tables = _readers(node.outputs[0], blocks.axis) if blocks else ([], [])
        self._left += len(node.outputs[0].uses()) - len(tables) - _paths(node.outputs[0], linears)
        if blocks is None or not linears + tables:
            return
        packed = self._pack(blocks)
        for reader in linears:
            self._linear(reader, blocks, packed)
        if tables:
            self._look_up(tables, blocks, packed, shared=bool(linears))

    def steps(self) -> list[Step]:
        how = "activations rounded to int8 by block" if self._accuracy_level == INT8_ACTIVATIONS else "fp32 activations"
        steps = [Step("lower", f"int{bits} Linears -> {_LINEAR}", n, how) for bits, n in sorted(self._linears.items())]
        steps += [
            Step("lower", "biases taken into the product", self._biases),
            Step("lower", f"embedding lookups -> {_TABLE}", self._tables),
            Step("lower", "tables kept once for lookup and head", self._shared, "one region of the data file"),
            Step("lower", "DequantizeLinear kept", self._left, "read by something that is neither MatMul nor Gather"),
        ]
        return [step for step in steps if step.count]

    def _linear(self, node: ir.Node, blocks: _Blocks, packed: _Packed) -> None:
        bias, last = _bias(node, blocks.rows)
        inputs = [node.inputs[0], packed.weight, packed.scales, packed.zeros, None, bias]
        attributes = {
            "K": blocks.columns, "N": blocks.rows, "bits": blocks.bits, "block_size": blocks.size,
            "accuracy_level": self._accuracy_level,
        }  # fmt: skip
        while inputs[-1] is None:
            inputs.pop()
        old = last.outputs[0]
        made = self._emit.before(last, _LINEAR, inputs, attributes, domain="com.microsoft", like=old)
        self._emit.replace(old, made.outputs[0])
        for dead in dict.fromkeys((last, node)):
            _remove(dead)
        self._linears[blocks.bits] = self._linears.get(blocks.bits, 0) + 1
        self._biases += bias is not None

    def _look_up(self, nodes: list[ir.Node], blocks: _Blocks, packed: _Packed, *, shared: bool) -> None:
        """The table as rows of bytes: its own initializer, so that looking up a row touches no other."""
        width = blocks.columns * blocks.bits // 8
        table = self._emit.alias(packed.weight, (blocks.rows, width), f"{packed.weight.name}.rows")
        attributes = {"bits": blocks.bits, "block_size": blocks.size, "gather_axis": 0, "quantize_axis": 1}
        for node in nodes:
            inputs = [table, node.inputs[1], packed.scales, packed.zeros]
            inputs = inputs if packed.zeros is not None else inputs[:3]
            old = node.outputs[0]
            made = self._emit.before(node, _TABLE, inputs, attributes, domain="com.microsoft", like=old)
            self._emit.replace(old, made.outputs[0])
            _remove(node)
        self._tables += len(nodes)
        self._shared += shared

    def _pack(self, blocks: _Blocks) -> _Packed:
        name = blocks.integers.name or "weight"
        count = blocks.columns // blocks.size
        shape = (blocks.rows, count, blocks.size * blocks.bits // 8)
        weight = self._lazy(f"{name}.packed", shape, lambda: _packed(_codes(blocks, blocks.integers), blocks.bits))
        scales = blocks.scales
        if blocks.axis == 0:
            turned = ir.LazyTensor(
                lambda: ir.tensor(_turned(blocks.scales, 0)), scales.dtype, ir.Shape([blocks.rows, count])
            )
            scales = self._emit.initializer(turned, f"{name}.scales")
        if (blocks.zeros is None and blocks.integers.dtype in _SIGNED) or _is_default(blocks):
            return _Packed(weight, scales, None)
        zero_shape = (blocks.rows, (count * blocks.bits + 7) // 8)
        zeros = self._lazy(f"{name}.zeros", zero_shape, lambda: _packed(_zeros(blocks), blocks.bits))
        return _Packed(weight, scales, zeros)

    def _lazy(self, name: str, shape: tuple[int, ...], make: Any) -> ir.Value:
        tensor = ir.LazyTensor(lambda: ir.tensor(make().reshape(shape)), ir.DataType.UINT8, ir.Shape(shape))
        return self._emit.initializer(tensor, name)


_SIGNED = frozenset({ir.DataType.INT4, ir.DataType.INT8})


def _read(node: ir.Node) -> _Blocks | None:
    """The blocks that a `DequantizeLinear` reads, or None where they are not constants that the kernels take."""
    integers, scales, zeros = (*node.inputs, None)[:3]
    if integers is None or scales is None or integers.dtype not in _BITS or scales.dtype != ir.DataType.FLOAT:
        return None
    constants = [value for value in (integers, scales, zeros) if value is not None]
    if any(not value.is_initializer() for value in constants) or integers.shape is None or integers.shape.rank() != 2:
        return None
    axis, size = node.attributes.get_int("axis", 1) % 2, node.attributes.get_int("block_size", 0)
    blocks = _Blocks(integers, scales, zeros, axis, size, _BITS[integers.dtype])
    fits = size >= _SMALLEST_BLOCK and size & (size - 1) == 0 and blocks.columns % size == 0
    return blocks if fits else None


def _readers(weight: ir.Value, axis: int) -> tuple[list[ir.Node], list[ir.Node]]:
    """MatMuls whose second input this is, through a Transpose where blocks lie along rows; and Gathers of its rows."""
    uses = weight.uses()
    if axis == 0:
        return _products(weight), []
    turned = [use.node.outputs[0] for use in uses if use.node.op_type == "Transpose" and not use.node.domain]
    gathers = [use.node for use in uses if use.node.op_type == "Gather" and use.idx == 0]
    tables = [node for node in gathers if node.attributes.get_int("axis", 0) == 0]
    return [node for value in turned for node in _products(value)], tables


def _products(weight: ir.Value) -> list[ir.Node]:
    return [use.node for use in weight.uses() if use.node.op_type == "MatMul" and use.idx == 1 and not use.node.domain]


def _paths(weight: ir.Value, linears: list[ir.Node]) -> int:
    """How many of the weight's uses lead to these MatMuls and to nothing else."""
    ours = 0
    for use in weight.uses():
        ends = [use.node] if use.node.op_type != "Transpose" else [each.node for each in use.node.outputs[0].uses()]
        ours += all(end in linears for end in ends)
    return ours


def _bias(node: ir.Node, width: int) -> tuple[ir.Value | None, ir.Node]:
    """The constant bias [N] that alone is added to the product, and the last node of the Linear."""
    uses = node.outputs[0].uses()
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None, node
    bias = uses[0].node.inputs[1 - uses[0].idx]
    if bias is None or not bias.is_initializer() or bias.shape is None or list(bias.shape) != [width]:
        return None, node
    return bias, uses[0].node


def _codes(blocks: _Blocks, value: ir.Value) -> NDArray[np.uint8]:
    """Unsigned integers [rows, ..]; signed ones are moved up by half the range, as their zero points are."""
    numbers = _turned(value, blocks.axis)
    if value.dtype in _SIGNED:
        return (numbers.astype(np.int16) + (1 << (blocks.bits - 1))).astype(np.uint8)
    return numbers.astype(np.uint8)


def _zeros(blocks: _Blocks) -> NDArray[np.uint8]:
    if blocks.zeros is not None:
        return _codes(blocks, blocks.zeros)
    return np.zeros((blocks.rows, blocks.columns // blocks.size), np.uint8)


def _is_default(blocks: _Blocks) -> bool:
    """Whether every zero point is the middle of the range, which the kernels assume and are fastest with."""
    return bool((_zeros(blocks) == 1 << (blocks.bits - 1)).all())


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Along the last axis, the first of a pair in the low half of its byte; an odd end is filled with 0."""
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return (even[:, 0::2] | even[:, 1::2] << 4).astype(np.uint8)


def _turned(value: ir.Value, axis: int) -> NDArray[Any]:
    """The constant with its blocks along the last axis; a file's pages are given back."""
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"{value.name} is not a constant")
    # No name may hold the array: the file cannot be unmapped while a view of it is left.
    made = np.array(tensor.numpy().T if axis == 0 else tensor.numpy(), order="C", copy=True)
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return made


def _remove(node: ir.Node) -> None:
    if node.graph is not None:
        node.graph.remove(node, safe=True)
