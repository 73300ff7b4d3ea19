"""Block grids as standard ONNX: `DequantizeLinear` in front of a MatMul, in front of a lookup, and both in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.blocks import Blocks, Grid, codes
from quantize.linears import add_initializer
from quantize.nodes import map_tensor, new_node, unused_name

__all__ = ["Offsets", "Rounded", "append", "dequantize_node", "held", "lazily", "rounded"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A weight's integers and scales as they are to be written, blocks along `axis` of its two.

    The weight is (integers - zero points) · scale, plus `offset` over each block where a source's grid needs one.
    """

    grid: Grid
    axis: int
    integers: ir.TensorProtocol
    scale: ir.TensorProtocol
    zero: ir.TensorProtocol
    offset: ir.TensorProtocol | None = None


def rounded(tensor: ir.TensorProtocol, blocks: Blocks, axis: int, factor: Array | None = None) -> Rounded:
    """The nearest integers of a weight, times `factor` along `axis` where given; made when they are written."""

    def make() -> Array:
        return map_tensor(tensor, lambda array: codes(scaled(array, factor, axis), blocks, axis))

    shape = tuple(int(size) for size in tensor.shape)
    return Rounded(blocks.grid, axis, lazily(make, blocks.grid.dtype, shape), *_written(blocks))


def held(integers: Array, blocks: Blocks) -> Rounded:
    """Integers [K, N] that nothing can make again, kept packed until they are written."""
    dtype = ir.DataType[blocks.grid.dtype.upper()]
    flat = integers.astype(np.uint8).reshape(-1)
    if blocks.grid.bits == 8:
        kept: ir.TensorProtocol = ir.tensor(integers.astype(dtype.numpy()))
    else:
        # An odd count leaves the last high half empty, as ONNX packs it.
        low, high = flat[0::2] & 15, np.append(flat[1::2] & 15, np.zeros(flat.size % 2, np.uint8))
        kept = ir.PackedTensor((low | high << 4).astype(np.uint8), dtype, shape=ir.Shape(integers.shape))
    return Rounded(blocks.grid, 0, kept, *_written(blocks))


def scaled(array: Array, factor: Array | None, axis: int) -> Array:
    """The array times a vector along `axis`, or as it is."""
    return array if factor is None else array * np.expand_dims(factor, 1 - axis)


def lazily(make: Callable[[], Array], dtype: str, shape: tuple[int, ...]) -> ir.LazyTensor:
    """A tensor that is computed when it is written, and not kept."""
    kind = ir.DataType[dtype.upper()]
    return ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(make()).astype(kind.numpy()), dtype=kind),
        dtype=kind,
        shape=ir.Shape(shape),
    )


def dequantize_node(graph: ir.Graph, weight: ir.Value, made: Rounded, before: ir.Node) -> ir.Value:
    """Write the integers, scales and zero points, and the node that answers the weight in float32."""
    name = str(weight.name)
    inputs: list[ir.Value | None] = [
        add_initializer(graph, f"{name}_{made.grid.dtype}", made.integers),
        add_initializer(graph, f"{name}_scale", made.scale),
        add_initializer(graph, f"{name}_zero_point", made.zero),
    ]
    output = unused_name(graph, f"{name}_dequantized")
    node = new_node("DequantizeLinear", inputs, output, before, axis=made.axis, block_size=made.grid.block_size)
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(made.integers.shape)
    graph.insert_before(before, node)
    return node.outputs[0]


def append(
    graph: ir.Graph, after: ir.Node | None, op_type: str, inputs: list[ir.Value | None], name: str, **attributes: Any
) -> ir.Value:
    """The float32 output of a new node right behind another, whose metadata it carries."""
    if after is None:
        raise ValueError(f"nothing makes what {name} follows")
    made = new_node(op_type, inputs, unused_name(graph, name), after, **attributes)
    made.outputs[0].dtype = ir.DataType.FLOAT
    graph.insert_after(after, made)
    return made.outputs[0]


class Offsets:
    """Adds y += (sum of x over each block of K) · offset; the sums are shared by all readers of x."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._sums: dict[tuple[ir.Value, int], ir.Value] = {}

    @property
    def used(self) -> bool:
        """Whether any product was completed."""
        return bool(self._sums)

    def add(self, node: ir.Node, offset: ir.Value, block_size: int) -> None:
        """`offset` is [K / block_size, N]; `node` is the MatMul whose result it completes."""
        product = node.outputs[0]
        readers = [(use.node, use.idx) for use in product.uses()]
        sums = self._block_sums(node, block_size)
        correction = append(self._graph, node, "MatMul", [sums, offset], f"{product.name}_offset")
        total = append(self._graph, correction.producer(), "Add", [product, correction], f"{product.name}_exact")
        total.shape = product.shape
        for reader, index in readers:
            reader.replace_input_with(index, total)
        if product.is_graph_output():
            _take_output(self._graph, product, total)

    def _block_sums(self, node: ir.Node, block_size: int) -> ir.Value:
        source = node.inputs[0]
        if source is None or source.shape is None:
            raise ValueError(f"the rank of what {node.name} reads is unknown")
        if (source, block_size) not in self._sums:
            name, rank = str(source.name), len(source.shape)
            blocks = int(_width(node)) // block_size
            target = add_initializer(
                self._graph, f"{name}_block_shape", ir.tensor(np.array([0] * (rank - 1) + [blocks, block_size]))
            )
            axes = add_initializer(self._graph, f"{name}_block_axis", ir.tensor(np.array([rank])))
            split = self._before(node, "Reshape", [source, target], f"{name}_blocks")
            sums = self._before(node, "ReduceSum", [split, axes], f"{name}_block_sums", keepdims=0)
            self._sums[source, block_size] = sums
        return self._sums[source, block_size]

    def _before(
        self, node: ir.Node, op_type: str, inputs: list[ir.Value | None], name: str, **attributes: Any
    ) -> ir.Value:
        made = new_node(op_type, inputs, unused_name(self._graph, name), node, **attributes)
        made.outputs[0].dtype = ir.DataType.FLOAT
        self._graph.insert_before(node, made)
        return made.outputs[0]


def _take_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Give `new` the name and place of a graph output."""
    name, index = old.name, list(graph.outputs).index(old)
    old.name, new.name = f"{name}_without_offset", name
    graph.outputs[index] = new


def _width(node: ir.Node) -> int:
    weight = node.inputs[1]
    if weight is None or weight.shape is None:
        raise ValueError(f"the weight of {node.name} has no shape")
    return int(weight.shape[0])


def _written(blocks: Blocks) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
    zero = lazily(lambda: blocks.zero, blocks.grid.dtype, blocks.zero.shape)
    return ir.tensor(blocks.scale), zero
