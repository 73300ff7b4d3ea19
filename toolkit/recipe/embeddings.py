"""Embedding tables in int8: which runtimes look their rows up in the integers."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit import plugins
from toolkit.errors import UnsupportedError
from toolkit.recipe.document import Quantization
from toolkit.target import Target

__all__ = ["check_embeddings"]


def check_embeddings(changes: Quantization, targets: Sequence[Target]) -> None:
    """Raise UnsupportedError where a runtime would not look rows up in integers, but make the whole table float."""
    if changes.embeddings != "int8":
        return
    takes = [
        name for name, each in plugins.listing("runtimes").items() if "int8" in each.literals.get("EMBEDDINGS", ())
    ]
    for target in targets:
        if target.runtime not in takes:
            raise UnsupportedError(
                f"runtime '{target.runtime}' does not look rows up in embedding tables of int8",
                hint=f"Export for {target} without embeddings=int8. It is taken by: {', '.join(takes)}.",
            )
