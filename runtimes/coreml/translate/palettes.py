"""Lookup tables as `quantize.palette_nodes` writes them, read back as `constexpr_lut_to_dense` takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.nodes import constant

__all__ = ["BITS", "Palette", "palette_of"]

BITS = (1, 2, 3, 4, 6, 8)
"""How wide an index of MIL can be."""


@dataclass(frozen=True, slots=True, eq=False)
class Palette:
    """A weight [N, K] of `indices`; `tables` is [groups, 1, entries, 1], or has its groups along another axis."""

    indices: ir.TensorProtocol
    tables: NDArray[Any]

    @property
    def bits(self) -> int:
        """What an index takes."""
        return int(self.tables.shape[-2] - 1).bit_length()


def palette_of(node: ir.Node) -> Palette | None:
    """What a `Gather` looks up, where it is `Gather(tables, Cast(indices) [+ base])` of constants; else None."""
    if node.op_type != "Gather":
        return None
    table = constant(node.inputs[0])
    places, base = _with_base(node.inputs[1])
    indices = _narrow(places)
    if table is None or indices is None or len(table.shape) != 1:
        return None
    shape = tuple(int(size) for size in indices.shape)
    groups, axis = _groups(base, shape)
    if not groups or table.size % groups or table.size // groups not in {1 << bits for bits in BITS}:
        return None
    if base is not None and not (base == _starts(shape, groups, axis, table.size // groups)).all():
        return None
    lead = [groups if place == axis else 1 for place in range(len(shape))]
    return Palette(indices, table.numpy().reshape(*lead, table.size // groups, 1))


def _with_base(value: ir.Value | None) -> tuple[ir.Value | None, NDArray[Any] | None]:
    """What is looked up, and what is added to it so that each group of channels has a table of its own."""
    node = value.producer() if value is not None else None
    added = constant(node.inputs[1]) if node is not None and node.op_type == "Add" else None
    return (value, None) if node is None or added is None else (node.inputs[0], added.numpy())


def _narrow(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The indices behind a cast to int32."""
    node = value.producer() if value is not None else None
    stored = constant(node.inputs[0]) if node is not None and node.op_type == "Cast" else None
    return stored if stored is not None and stored.dtype in (ir.DataType.UINT4, ir.DataType.UINT8) else None


def _groups(base: NDArray[Any] | None, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many tables there are, and along which axis; none for a base that is not along one."""
    if base is None:
        return 1, 0
    long = [axis for axis, size in enumerate(base.shape) if size > 1]
    if len(long) != 1 or base.ndim != len(shape) or base.shape[long[0]] != shape[long[0]]:
        return 0, 0
    groups = len(np.unique(base))
    return (groups, long[0]) if shape[long[0]] % groups == 0 else (0, 0)


def _starts(shape: tuple[int, ...], groups: int, axis: int, entries: int) -> NDArray[Any]:
    starts = np.arange(groups).repeat(shape[axis] // groups) * entries
    return starts.reshape([-1 if place == axis else 1 for place in range(len(shape))])
