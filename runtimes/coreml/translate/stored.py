"""Weights as they lie in the file: plain, in integers with scales, or as indices of lookup tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.nodes import constant
from runtimes.coreml.translate.mil import NUMPY, Var, held, mb, types
from runtimes.coreml.translate.palettes import palette_of

__all__ = ["Stored", "stored_of"]

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
        """tables[group of the channel][indices]."""
        palette = palette_of(node)
        if palette is None:
            raise ValueError(f"{self.name} is no palettized weight")
        lut: NDArray[Any] = palette.tables.transpose(*self.perm, self.rank, self.rank + 1).astype(NUMPY[dtype])
        indices = self._turned(_plain_integers(palette.indices)).astype(_INDICES[palette.bits])
        return mb.constexpr_lut_to_dense(indices=indices, lut=np.ascontiguousarray(lut), name=name)

    def _turned(self, array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(array.transpose(self.perm)) if self.perm != tuple(range(array.ndim)) else array


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


def _held_in(node: ir.Node) -> ir.TensorProtocol | None:
    """The integers or indices that a node makes a weight of; None where it makes none."""
    if node.op_type == "DequantizeLinear" and _scales_are_known(node):
        return constant(node.inputs[0])
    palette = palette_of(node)
    return None if palette is None else palette.indices


def _plain(value: ir.Value, rank: int) -> Stored:
    return Stored(value, rank, tuple(range(rank)))


def _perm(attribute: ir.Attr | None, rank: int) -> tuple[int, ...]:
    return tuple(attribute.as_ints()) if attribute is not None else tuple(reversed(range(rank)))


def _scales_are_known(node: ir.Node) -> bool:
    return all(value is None or constant(value) is not None for value in node.inputs[1:])


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
    return _plain_integers(tensor)


def _plain_integers(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """The numbers; those of 4 bits in 8, for numpy does little with the types of ml_dtypes."""
    wide = {ir.DataType.INT4: np.int8, ir.DataType.UINT4: np.uint8}.get(tensor.dtype)
    array: NDArray[Any] = np.asarray(tensor.numpy())
    return array if wide is None else array.astype(wide)


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
