"""Embedding tables in int8 where a scheme leaves them alone, as it does but for language models."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from quantize.block_nodes import Offsets
from quantize.rounding import round_nearest
from quantize.table_nodes import write_table
from quantize.tables import Table, find_tables, matches
from quantize.weights import Weight, plan_tables
from toolkit.errors import UsageError
from toolkit.types import QuantConfig, Step

__all__ = ["quantize_embeddings"]

_LEAST_ROWS = 256
_BLOCK = 128
"""The largest there is: a scale for a row of 128 numbers, three for one of 384."""


def quantize_embeddings(model: ir.Model, recipe: QuantConfig) -> list[Step]:
    """Put each table [V, K] of at least 256 rows in blocks along K, in place, as `quantize.table_nodes` writes them.

    Blocks have `recipe.block_size` numbers, else 128, or the largest allowed size below that divides K; where none
    does, the table stays fp32. A head that multiplies with the table's transpose reads the same integers.
    Raises UsageError where the model has no such table, StageError where one holds NaN or Inf.
    """
    tables = [table for table in find_tables(model.graph) if _rows(table) >= _LEAST_ROWS]
    if not tables:
        raise UsageError(
            f"the model looks nothing up in a table of {_LEAST_ROWS} rows or more",
            hint="Leave embeddings out of the recipe: there is nothing to quantize.",
        )
    kept = [table for table in tables if not matches(table, recipe.exclude)]
    planned = plan_tables(kept, replace(recipe, block_size=recipe.block_size or _BLOCK), {})
    done = [weight for weight in planned if weight.grid is not None]
    offsets = Offsets(model.graph)
    for weight in done:
        if weight.table is not None:
            write_table(model.graph, weight.table, round_nearest(weight), offsets)
    left = [str(weight.value.name) for weight in planned if weight.grid is None]
    steps = [
        Step("quantize", "int8 embedding tables", len(done), _how(done)),
        Step("quantize", "embedding tables kept in fp32", len(left), f"no block size divides {', '.join(left)}"),
    ]
    return [step for step in steps if step.count]


def _rows(table: Table) -> int:
    return int(table.weight.shape[0]) if table.weight.shape is not None else 0


def _how(weights: list[Weight]) -> str:
    sizes = dict.fromkeys(weight.grid.block_size for weight in weights if weight.grid is not None)
    return f"block {', '.join(map(str, sizes))}, nearest"
