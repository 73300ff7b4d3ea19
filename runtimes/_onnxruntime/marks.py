"""What lowering notes in a graph's metadata for the session that will open it. Imports nothing: sessions stay small."""

from __future__ import annotations

__all__ = ["IN_PLACE", "POSITIONS"]

IN_PLACE = "toolkit.cache"
"""`in-place` where past and present of every layer may be one buffer."""
POSITIONS = "toolkit.positions"
"""How many positions the graph's rotary tables hold."""
