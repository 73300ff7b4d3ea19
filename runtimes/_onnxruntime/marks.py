"""What lowering notes in a graph's metadata for the session that will open it. Imports nothing: sessions stay small."""

from __future__ import annotations

__all__ = ["ALL_ROWS", "BY_ROW", "IN_PLACE", "POSITIONS"]

IN_PLACE = "toolkit.cache"
"""Present where past and present of every layer may be one buffer: `ALL_ROWS` or `BY_ROW`."""
ALL_ROWS = "in-place"
"""Any rows at once, padded on the right."""
BY_ROW = "in-place-by-row"
"""Several tokens behind a past go in one row at a time, without padding."""
POSITIONS = "toolkit.positions"
"""How many positions the graph's rotary tables hold."""
