"""From a comparison to the layers that must stay as they are: bisecting what the candidate was made by."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.bisect.bisect import bisect
from toolkit.compare.sides import open_side
from toolkit.errors import UsageError
from toolkit.workbench import Workbench

if TYPE_CHECKING:
    from toolkit.bisect.result import BisectResult
    from toolkit.plan import Request
    from toolkit.progress import Watch

__all__ = ["bisected"]


def bisected(candidate: str, target: str, ranking: Sequence[str], watch: Watch) -> tuple[BisectResult, Request]:
    """What `bisect` finds for a recipe or a bundle, with `ranking` as suspects, and the request that it was found for.

    Raises UsageError for a graph, and as `bisect` does.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-bisect-") as place:
        side = open_side(candidate, Path(place), watch, target)
        if side.line is None:
            raise UsageError(
                f"{candidate} is a graph, which is quantized already", hint="Give the recipe or the bundle to --bisect."
            )
        line = side.line()
        with Workbench.open(line.plan, watch, Path(place)) as bench:
            return bisect(bench, line.target, ranking=ranking, watch=watch), line.plan.request
