"""Which grid each weight takes: 4 or 8 bits, the file's own, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import onnx_ir as ir
from numpy.typing import NDArray

from quantize.blocks import Grid, block_size_for
from quantize.linears import Linear
from quantize.nodes import map_tensor, module_path
from quantize.packed import fits
from quantize.tables import Table
from toolkit.errors import StageError
from toolkit.types import PackedWeight, QuantConfig

__all__ = ["Weight", "plan_linears", "plan_tables"]

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class Weight:
    """A constant [K, N] and the MatMuls that read it, or a table [V, K]; blocks run along K.

    `grid` is None where the weight stays fp32, `packed` is set where the file's own blocks are written.
    """

    value: ir.Value
    readers: tuple[ir.Node, ...]
    grid: Grid | None
    packed: PackedWeight | None = None
    table: Table | None = None

    @property
    def axis(self) -> int:
        """Along which axis of the weight the blocks run."""
        return 1 if self.table is not None else 0

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The fp32 weight."""
        if self.value.const_value is None:
            raise ValueError(f"weight {self.value.name} has no data")
        return self.value.const_value

    def read(self, function: Callable[[NDArray[Any]], _T]) -> _T:
        """`function` of the weight. Raises StageError, which names it, where that raises ValueError: NaN or Inf."""
        try:
            return map_tensor(self.tensor, function)
        except ValueError as error:
            raise self.not_finite() from error

    def not_finite(self) -> StageError:
        """The error for a weight that holds NaN or Inf."""
        return StageError(
            "quantize",
            f"weight '{self.value.name}' of module '{module_path(self.readers[0])}' holds NaN or Inf",
            hint="Check the checkpoint: a weight that is not finite has no scale.",
        )

    @property
    def size(self) -> int:
        """How many weights there are."""
        return int(self.tensor.size)


def plan_linears(
    linears: Iterable[Linear], recipe: QuantConfig, last: Set[ir.Node], packed: Mapping[str, PackedWeight]
) -> list[Weight]:
    """One entry a distinct weight, in graph order; the last Linear before an output takes 8 bits."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for linear in linears:
        readers.setdefault(linear.weight, []).append(linear.node)
    return [
        _planned(Weight(value, tuple(nodes), None), 8 if last & set(nodes) else _bits(recipe), recipe, packed)
        for value, nodes in readers.items()
    ]


def plan_tables(tables: Iterable[Table], recipe: QuantConfig, packed: Mapping[str, PackedWeight]) -> list[Weight]:
    """One entry a table, of 8 bits: its rows are read a few at a time, and a tied head is the most sensitive Linear."""
    return [
        _planned(Weight(table.weight, (*table.gathers, *table.heads), None, table=table), 8, recipe, packed)
        for table in tables
    ]


def _planned(weight: Weight, bits: Literal[4, 8], recipe: QuantConfig, packed: Mapping[str, PackedWeight]) -> Weight:
    given = packed.get(str(weight.value.name))
    width = int(weight.tensor.shape[weight.axis])
    size = block_size_for(width, recipe.block_size or 32)
    if given is not None and fits(given, bits):
        weight.packed = given
        # A scheme of 8 bits writes 8 bits throughout, a file's 4-bit integers among them.
        own: Literal[4, 8] = 8 if _bits(recipe) == 8 else given.bits
        weight.grid = Grid(own, given.block_size)
    elif size is not None:
        weight.grid = Grid(bits, size, recipe.symmetric or bits == 8)
    return weight


def _bits(recipe: QuantConfig) -> Literal[4, 8]:
    return 4 if recipe.weights in {"int4", "uint4"} else 8
