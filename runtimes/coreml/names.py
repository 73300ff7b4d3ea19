"""What a tensor of the graph is called in a package."""

from __future__ import annotations

import re

__all__ = ["coreml_name"]


def coreml_name(name: str) -> str:
    """How a tensor of that name is called in a package: MIL's names are made of letters, digits and underscores."""
    plain = re.sub(r"[^0-9A-Za-z_]", "_", name)
    return f"_{plain}" if plain[:1].isdigit() else plain
