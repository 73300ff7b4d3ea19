"""What a bisection found, as frozen values that survive JSON exactly, and as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toolkit.document import Frozen, read_document
from toolkit.drift.report import FiniteGate, StageDrift
from toolkit.recipe.document import Quantization

if TYPE_CHECKING:
    from toolkit.plan import Request
    from toolkit.recipe.document import Recipe

__all__ = ["SCHEMA_VERSION", "BisectAttempt", "BisectResult", "read_bisection", "recipe_of_bisection"]

SCHEMA_VERSION = 1


class BisectAttempt(Frozen):
    """The model with these modules left out of the quantization, measured; `seconds` is what that took."""

    excluded: tuple[str, ...]
    drift: StageDrift
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the gate held."""
        return self.drift.passed


class BisectResult(Frozen):
    """The modules that must stay as they are for the target to pass its gate, and how that was found out.

    `outcome`: `held` (nothing is to be excluded), `found`, or `hopeless` (not even excluding everything passes, and
    `failures` says what does not hold then). `excluded` are the modules found, in the order of the graph, without those
    that the recipe excluded before; `minimal` says that the gate fails when any single one of them is quantized after
    all. `quantization` is the recipe's section with them in it. `candidates` counts the modules that were quantized.
    """

    schema_version: Literal[1] = 1
    model: str
    target: str
    gate: FiniteGate
    outcome: Literal["held", "found", "hopeless"]
    excluded: tuple[str, ...] = ()
    minimal: bool = False
    candidates: int = Field(ge=0)
    quantization: Quantization
    attempts: tuple[BisectAttempt, ...] = Field(min_length=1)
    failures: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """What all attempts took."""
        return sum(attempt.seconds for attempt in self.attempts)

    def verdict(self) -> str:
        """The answer in a sentence."""
        took = f"{len(self.attempts)} attempts, {self.seconds:.0f} s"
        if self.outcome == "held":
            return f"{self.model} passes its gate as {self.target} with nothing excluded ({took})"
        if self.outcome == "hopeless":
            return (
                f"no exclusion helps: {self.model} as {self.target} fails even with all {self.candidates} layers "
                f"excluded: {'; '.join(self.failures)} ({took})"
            )
        smallest = "none of them can be spared" if self.minimal else "perhaps more than are needed"
        return (
            f"{len(self.excluded)} of {self.candidates} layers must stay as they are for {self.model} to pass as "
            f"{self.target}, {smallest} ({took}): {', '.join(self.excluded)}"
        )

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The attempts as rows of text under a heading: how many are excluded, which, worst SQNR, gate, seconds."""
        heading = ("excluded", "modules", "SQNR dB", "gate", "s")
        return (heading, *(_row(attempt, self.candidates) for attempt in self.attempts))


def read_bisection(path: Path) -> BisectResult:
    """Read a bisection's JSON. Raises UsageError where it is not that."""
    return read_document(path, BisectResult, SCHEMA_VERSION, "bisection")


def recipe_of_bisection(result: BisectResult, request: Request) -> Recipe:
    """The recipe that exports what was found: the request's own for this one target, with the exclusions."""
    from toolkit.recipe.request import recipe_of

    return recipe_of(replace(request, targets=(result.target,), recipe=result.quantization))


def _row(attempt: BisectAttempt, candidates: int) -> tuple[str, ...]:
    count = len(attempt.excluded)
    names = "all" if count == candidates else ", ".join(attempt.excluded[:3]) + (", …" if count > 3 else "")
    sqnr = attempt.drift.worst().sqnr_db
    return (
        str(count),
        names or "none",
        "-" if sqnr is None else f"{sqnr:.1f}",
        "holds" if attempt.passed else "; ".join(attempt.drift.failures),
        f"{attempt.seconds:.1f}",
    )
