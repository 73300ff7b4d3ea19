"""Token ids of several texts as one padded table, with the special tokens around them, in a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_zoo._graph_builder import Graph, Value
from model_zoo._token_models import Tokens

__all__ = ["Layout", "table"]


@dataclass(frozen=True)
class Layout:
    """How a row is laid: `before`, the text's tokens, `after`; at most `limit` in all; padded with `pad`."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    limit: int | None
    pad: int
    left: bool


def table(g: Graph, tokens: Tokens, batch: Value, layout: Layout) -> tuple[Value, Value]:
    """Ids and attention mask, both int64 [B, S] with S the longest row; `batch` is B, int64 [1]."""
    special = len(layout.before) + len(layout.after)
    none = g.op("Expand", 0, batch)
    every = g.op("Range", 0, g.op("Squeeze", batch), 1)
    count = g.op("ScatterElements", none, tokens.rows, g.op("Expand", 1, g.op("Shape", tokens.rows)), reduction="add")
    index = g.op("Range", 0, g.op("Squeeze", g.op("Shape", tokens.ids)), 1)
    place = index - g.op("Gather", g.op("CumSum", count, 0, exclusive=1), tokens.rows)
    ids, rows = tokens.ids, tokens.rows
    if layout.limit is not None:
        room = max(0, layout.limit - special)
        kept = place < room
        ids, rows, place = (g.op("Compress", item, kept) for item in (ids, rows, place))
        count = g.op("Min", count, room)
    total = count + special
    width = g.op("ReduceMax", total)
    begin = every * width + (width - total if layout.left else none)
    targets = [g.op("Gather", begin, rows) + place + len(layout.before)]
    targets += [begin + offset for offset in range(len(layout.before))]
    targets += [begin + count + (len(layout.before) + offset) for offset in range(len(layout.after))]
    values = [ids, *(none + value for value in (*layout.before, *layout.after))]
    flat = _scatter(g, g.op("Expand", layout.pad, batch * width), targets, values)
    shape = g.op("Concat", batch, width, axis=0)
    return g.op("Reshape", flat, shape, allowzero=1), _mask(g, total, width, layout.left)


def _scatter(g: Graph, flat: Value, targets: Sequence[Value], values: Sequence[Value]) -> Value:
    if len(targets) == 1:
        return g.op("ScatterElements", flat, targets[0], values[0])
    return g.op("ScatterElements", flat, g.op("Concat", *targets, axis=0), g.op("Concat", *values, axis=0))


def _mask(g: Graph, total: Value, width: Value, left: bool) -> Value:
    column = g.op("Unsqueeze", g.op("Range", 0, g.op("Squeeze", width), 1), np.array([0]))
    lengths = g.op("Unsqueeze", total, np.array([1]))
    return (column >= g.op("Sub", width, lengths) if left else column < lengths).cast()
