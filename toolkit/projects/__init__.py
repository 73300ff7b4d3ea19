"""Programs around bundles: one folder a language, exposing an instance as `PROJECT`.

A folder here holds the program's sources as they are written out, in `templates/`. What a self-test of each does is
laid down in docs/selftest.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from toolkit.bundle.read import Bundle

__all__ = ["Writer"]


class Writer(Protocol):
    """Writes something around bundles: a program in a language, or a server's layout of folders."""

    def check(self, bundle: Bundle) -> None:
        """Raise UnsupportedError where such a program or server cannot run this bundle."""
        ...

    def write(self, bundles: Sequence[Bundle], folder: Path) -> str:
        """Fill the empty folder for these bundles, all checked before; answer what to type next, a line each."""
        ...
