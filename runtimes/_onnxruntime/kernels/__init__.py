"""The toolkit's own CPU kernels: operators of domain `toolkit.cpu`, compiled on the machine that runs them."""

from __future__ import annotations

__all__ = ["DOMAIN", "VERSION"]

DOMAIN, VERSION = "toolkit.cpu", 1
