"""Which scheme needs which GPU architecture: the one whose hardware has the scheme's number type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from toolkit.errors import UnsupportedError

__all__ = ["MINIMUM", "refuse", "suited"]

MINIMUM: Mapping[str, int] = {"bf16": 80, "int4": 80, "fp8": 89, "nvfp4": 120}
"""Scheme -> the first compute capability, as 89 for sm89, for which TensorRT-RTX 1.7 compiles it.

Below it the builder says that the model contains hardware-specific data types. Other schemes compile for all.
"""


def suited(scheme: str, architectures: Iterable[str]) -> tuple[str, ...]:
    """Those of the given, as `sm89`, that can run the scheme, in their order."""
    return tuple(each for each in architectures if int(each.removeprefix("sm")) >= MINIMUM.get(scheme, 0))


def refuse(scheme: str, architectures: Iterable[str]) -> None:
    """Raises UnsupportedError that names those of the given architectures which cannot run the scheme."""
    asked = tuple(architectures)
    allowed = suited(scheme, asked)
    wrong = [each for each in asked if each not in allowed]
    if wrong:
        takes = [name for name in ("fp16", "int8", "int4", "fp8") if suited(name, wrong) == tuple(wrong)]
        raise UnsupportedError(
            f"scheme '{scheme}' needs sm{MINIMUM[scheme]} or newer, not {', '.join(wrong)}",
            hint=f"Leave {', '.join(wrong)} out of --arch, or take a scheme that it runs: {', '.join(takes)}.",
        )
