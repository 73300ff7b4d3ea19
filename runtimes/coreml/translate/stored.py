"""Weights as they lie in the file: plain, in integers with scales, or as indices of a lookup table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.nodes import constant
from runtimes.coreml.translate.mil import NUMPY, Var, held, mb, types

__all__ = ["Stored", "is_stored", "stored_of"]

_PACKED = {
    ir.DataType.INT4: types.np_int4_dtype,
    ir.DataType.UINT4: types.np_uint4_dtype,
    ir.DataType.INT8: np.int8,
    ir.DataType.UINT8: np.uint8,
}
_INDICES = {
    1: types.np_uint1_dtype,
    2: types.np_uint2_dtype,
    3: types.np_uint3_dtype,
    4: types.np_uint4_dtype,
    6: types.np_uint6_dtype,
    8: np.uint8,
}
"""MIL's number types of so many bits; it has none of 5 and 7."""

_ROUNDING, _NEGLIGIBLE = 2.0**-10, 2.0**-14
"""What float16 may change of a scale, and what it may lose as part of the largest."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A weight that the program can keep as it is: `perm` says in which order its axes are read."""

    source: ir.Value
    rank: int
    perm: tuple[int, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from all other weights of the graph."""
        return (self.source, self.perm)

    @property
    def name(self) -> str:
        """What it is called in the graph."""
        return str(self.source.name)

    @property
    def compressed(self) -> bool:
        """Whether it lies in integers or indices rather than numbers."""
        return self.source.producer() is not None

    @property
    def half(self) -> bool:
        """Whether it is compressed and float16 holds its scales, or its table, within a rounding."""
        if not self.compressed:
            return False
        node = self.source.producer()
        numbers = _numbers(node.inputs[1 if node.op_type == "DequantizeLinear" else 0]).astype(np.float64)
        error = np.abs(numbers.astype(np.float16).astype(np.float64) - numbers)
        return bool((error <= np.maximum(_ROUNDING * np.abs(numbers), _NEGLIGIBLE * np.abs(numbers).max())).all())

    def transposed(self, perm: tuple[int, ...]) -> Stored:
        """The same weight with its axes in another order."""
        return replace(self, perm=tuple(self.perm[axis] for axis in perm))

    def make(self, dtype: str, name: str) -> Var:
        """Write it into the program: a constant, or an operator that Core ML decompresses while it loads."""
        producer = self.source.producer()
        if producer is None:
            return mb.const(val=held(self._turned(_numbers(self.source)), dtype), name=name)
        make = self._scaled if producer.op_type == "DequantizeLinear" else self._looked_up
        return make(producer, dtype, name)

    def _scaled(self, node: ir.Node, dtype: str, name: str) -> Var:
        """(integers - zero point) · scale: the scale's axes say by their sizes how many share one."""
        data, axis, block = _numbers(node.inputs[0]), node.attributes.get_int("axis", 1), _block_size(node)
        packed = _PACKED[_dtype(node.inputs[0])]
        scale, zero = (
            None if value is None else self._turned(_over_axes(_numbers(value), self.rank, axis, block))
            for value in (node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None)
        )
        offset = {} if zero is None or not zero.any() else {"offset": zero.astype(packed)}
        return mb.constexpr_blockwise_shift_scale(
            data=self._turned(data).astype(packed), scale=_exactly(scale, dtype), **offset, name=name
        )

    def _looked_up(self, node: ir.Node, dtype: str, name: str) -> Var:
        """table[indices]: one table for all or for each group of channels, of 2^bits numbers."""
        tables: NDArray[Any] = _numbers(node.inputs[0]).astype(NUMPY[dtype])
        indices = _numbers(_indices(node))
        lut = self._turned(tables.reshape(*_groups(node, self.rank), -1, 1))
        packed = _INDICES[int(math.log2(lut.shape[-2]))]
        return mb.constexpr_lut_to_dense(indices=self._turned(indices).astype(packed), lut=lut, name=name)

    def _turned(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array with its first axes in the order in which the weight's are read."""
        rest = range(self.rank, array.ndim)
        return np.ascontiguousarray(array.transpose(*self.perm, *rest))


def stored_of(value: ir.Value | None) -> Stored | None:
    """The weight behind a value, through casts and transpositions; None for what is computed."""
    if value is None:
        return None
    tensor, node = constant(value), value.producer()
    if tensor is not None:
        return _plain(value, len(tensor.shape))
    if node is None:
        return None
    held_in = _held_in(node)
    if held_in is not None:
        return _plain(value, len(held_in.shape))
    if node.op_type == "Cast" and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        source = stored_of(node.inputs[0])
        return source if source is not None and _is_float(source) else None
    if node.op_type == "Transpose":
        source = stored_of(node.inputs[0])
        perm = node.attributes.get("perm")
        return None if source is None else source.transposed(_perm(perm, source.rank))
    return None


def is_stored(node: ir.Node) -> bool:
    """Whether a node only says how a weight is stored: it makes one, or indices that nothing but a table is read by."""
    if stored_of(node.outputs[0]) is not None:
        return True
    readers = [use.node for use in node.outputs[0].uses()]
    found = [reader for reader in readers if node.op_type in ("Cast", "Add")]
    return bool(found) and all(_held_in(reader) is not None or is_stored(reader) for reader in found)


def _held_in(node: ir.Node) -> ir.TensorProtocol | None:
    """The integers or indices that a node makes a weight of; None where it makes none."""
    if node.op_type == "DequantizeLinear" and _scales_are_known(node):
        return constant(node.inputs[0])
    return constant(_indices(node)) if node.op_type == "Gather" and _is_palettized(node) else None


def _plain(value: ir.Value, rank: int) -> Stored:
    return Stored(value, rank, tuple(range(rank)))


def _perm(attribute: ir.Attr | None, rank: int) -> tuple[int, ...]:
    return tuple(attribute.as_ints()) if attribute is not None else tuple(reversed(range(rank)))


def _scales_are_known(node: ir.Node) -> bool:
    return all(value is None or constant(value) is not None for value in node.inputs[1:])


def _is_palettized(node: ir.Node) -> bool:
    """A table of one axis read by constant indices, in the form of `quantize.palette_nodes`."""
    table, indices = constant(node.inputs[0]), constant(_indices(node))
    if table is None or indices is None or len(table.shape) != 1 or not len(indices.shape):
        return False
    narrow = indices.dtype in (ir.DataType.UINT4, ir.DataType.UINT8)
    entries = table.size // math.prod(_groups(node, len(indices.shape)))
    return narrow and int(math.log2(entries)) in _INDICES and entries & (entries - 1) == 0


def _groups(node: ir.Node, rank: int) -> list[int]:
    """How many tables lie behind one another for each axis of the weight: as `base` of an Add has different starts."""
    add = node.inputs[1].producer() if node.inputs[1] is not None else None
    if add is None or add.op_type != "Add":
        return [1] * rank
    base = _numbers(add.inputs[1])
    return [len(np.unique(base)) if size > 1 else 1 for size in base.shape]


def _indices(node: ir.Node) -> ir.Value | None:
    value = node.inputs[1]
    cast = value.producer() if value is not None else None
    if cast is not None and cast.op_type == "Add" and constant(cast.inputs[1]) is not None:
        cast = cast.inputs[0].producer() if cast.inputs[0] is not None else None
    return cast.inputs[0] if cast is not None and cast.op_type == "Cast" else value


def _is_float(stored: Stored) -> bool:
    return stored.source.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _block_size(node: ir.Node) -> int:
    return int(node.attributes.get_int("block_size", 0))


def _dtype(value: ir.Value | None) -> ir.DataType:
    tensor = constant(value)
    if tensor is None:
        raise ValueError("a stored weight has no tensor")
    return tensor.dtype


def _numbers(value: ir.Value | None) -> NDArray[Any]:
    tensor = constant(value)
    if tensor is None:
        raise ValueError("a stored weight has no tensor")
    array = tensor.numpy()
    # int4 arrives in a number type of ml_dtypes, which numpy does little with.
    return array.astype(np.int8) if tensor.dtype == ir.DataType.INT4 else _wide(array, tensor.dtype)


def _wide(array: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    return array.astype(np.uint8) if dtype == ir.DataType.UINT4 else np.asarray(array)


def _over_axes(array: NDArray[Any], rank: int, axis: int, block: int) -> NDArray[Any]:
    """A scale or zero point with as many axes as the weight: [] and [N] get axes of size 1."""
    if array.ndim == rank and (block or rank != 1):
        return array
    shape = [1] * rank
    if array.size > 1:
        shape[axis] = array.size
    return array.reshape(shape)


def _exactly(scale: NDArray[Any] | None, dtype: str) -> NDArray[Any]:
    if scale is None:
        raise ValueError("a stored weight has no scale")
    return scale.astype(NUMPY[dtype])
