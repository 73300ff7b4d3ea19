"""What a drift measurement says, as frozen values that survive JSON exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from toolkit.document import Frozen, read_document
from toolkit.types import Gate

__all__ = [
    "SCHEMA_VERSION",
    "DriftReport",
    "FiniteGate",
    "GreedyDrift",
    "Metric",
    "OutputDrift",
    "StageDrift",
    "TaskDrift",
    "Worst",
    "read_report",
    "write_report",
]

SCHEMA_VERSION = 1

_CACHE = "present."


def _number(value: float) -> float:
    if math.isnan(value):
        raise ValueError("a metric is never NaN")
    return value


def _spell(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _finite(gate: Gate) -> Gate:
    for name in Gate.__dataclass_fields__:
        bound = getattr(gate, name)
        if bound is not None and not math.isfinite(bound):
            raise ValueError(f"{name} must be finite, got {bound}")
    return gate


Metric = Annotated[float, AfterValidator(_number), PlainSerializer(_spell, when_used="json")]
"""A float that may be infinite; JSON has no infinity, so it is written as the text `inf` or `-inf`."""

FiniteGate = Annotated[Gate, AfterValidator(_finite)]
"""A gate whose bounds are finite: an infinite bound would not survive JSON, and would say nothing."""


class OutputDrift(Frozen):
    """One output at its worst over all batches: lowest SQNR (dB) and cosine, highest relative L2 and max abs.

    The metrics are None when `failure` says why the output could not be compared.
    """

    name: str
    sqnr_db: Metric | None = None
    cosine: Metric | None = None
    relative_l2: Metric | None = None
    max_abs: Metric | None = None
    failure: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        metrics = (self.sqnr_db, self.cosine, self.relative_l2, self.max_abs)
        if any((metric is None) != bool(self.failure) for metric in metrics):
            raise ValueError(f"output '{self.name}' needs either all four metrics or a failure")
        return self


class GreedyDrift(Frozen):
    """Greedy continuations of reference and candidate, each fed its own tokens, over `steps` tokens a prompt.

    `agreement` is the fraction of all positions with the same token. `first_divergence` has for each prompt the step,
    from 0, at which the two first differ, None where they never do.
    """

    steps: int = Field(ge=1)
    agreement: float = Field(ge=0, le=1)
    first_divergence: tuple[int | None, ...] = Field(min_length=1)


class TaskDrift(Frozen):
    """The task's own metric over `count` held-out rows, or positions of text.

    Accuracies are in per cent and the drop in percentage points (negative: the candidate is better); without labels
    there is the agreement only;
    agreement and overlap are fractions of 1; `kl` is in nats a position, a lower bound where so marked.
    None: not of this metric, or `failure` says why it could not be compared, or `skipped` why it was not measured.
    """

    metric: Literal["accuracy", "retrieval", "language"]
    output: str
    count: int
    reference_accuracy: Metric | None = None
    candidate_accuracy: Metric | None = None
    accuracy_drop: Metric | None = None
    top1_agreement: Metric | None = None
    overlap_at_10: Metric | None = None
    reference_perplexity: Metric | None = None
    candidate_perplexity: Metric | None = None
    perplexity_ratio: Metric | None = None
    kl: Metric | None = None
    kl_is_lower_bound: bool = False
    greedy: GreedyDrift | None = None
    failure: str = ""
    skipped: str = ""


class Worst(Frozen):
    """A stage in one line: the worst of its outputs, and its task metric. None: not measured."""

    ran_on: str
    passed: bool
    sqnr_db: Metric | None = None
    cosine: Metric | None = None
    relative_l2: Metric | None = None
    max_abs: Metric | None = None
    accuracy_drop: Metric | None = None
    top1_agreement: Metric | None = None
    overlap_at_10: Metric | None = None
    perplexity_ratio: Metric | None = None
    kl: Metric | None = None


class StageDrift(Frozen):
    """How far one stage's graph or engine is from the reference, and which bounds of `gate` it broke."""

    stage: str
    ran_on: str
    outputs: tuple[OutputDrift, ...] = Field(min_length=1)
    task: TaskDrift | None = None
    gate: FiniteGate = Gate()
    failures: tuple[str, ...] = ()
    passed: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.passed == bool(self.failures):
            raise ValueError(f"stage '{self.stage}' says passed={self.passed} with {len(self.failures)} failures")
        return self

    def grouped(self) -> tuple[OutputDrift, ...]:
        """The outputs, with all of a cache (`present.N.key`, `present.N.value`) as one at its worst, `present.*`."""
        cache = [output for output in self.outputs if output.name.startswith(_CACHE)]
        if len(cache) < 2:
            return self.outputs
        others = tuple(output for output in self.outputs if not output.name.startswith(_CACHE))
        return (*others, _merged(f"{_CACHE}*", cache))

    def with_greedy(self, greedy: GreedyDrift) -> Self:
        """The same measurement with greedy agreement in its task section, which is made where there is none."""
        task = self.task or TaskDrift(metric="language", output="logits", count=0, skipped="there is no text for it")
        return self.model_copy(update={"task": task.model_copy(update={"greedy": greedy})})

    def worst(self) -> Worst:
        """The lowest SQNR and cosine, the highest relative L2 and max abs of all outputs."""
        task = self.task
        return Worst(
            ran_on=self.ran_on,
            passed=self.passed,
            sqnr_db=_extreme(min, [output.sqnr_db for output in self.outputs]),
            cosine=_extreme(min, [output.cosine for output in self.outputs]),
            relative_l2=_extreme(max, [output.relative_l2 for output in self.outputs]),
            max_abs=_extreme(max, [output.max_abs for output in self.outputs]),
            accuracy_drop=task.accuracy_drop if task else None,
            top1_agreement=task.top1_agreement if task else None,
            overlap_at_10=task.overlap_at_10 if task else None,
            perplexity_ratio=task.perplexity_ratio if task else None,
            kl=task.kl if task else None,
        )


class DriftReport(Frozen):
    """All stages in the order they ran, each against the same `reference` (library and device)."""

    schema_version: Literal[1] = 1
    reference: str
    stages: tuple[StageDrift, ...] = Field(min_length=1)
    passed: bool

    @classmethod
    def of(cls, reference: str, stages: Sequence[StageDrift]) -> Self:
        """A report that passes when every stage does."""
        return cls(reference=reference, stages=tuple(stages), passed=all(stage.passed for stage in stages))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.passed != all(stage.passed for stage in self.stages):
            raise ValueError(f"the report says passed={self.passed}, its stages say otherwise")
        return self

    @property
    def moved(self) -> str | None:
        """The stage to look at: the first that broke its gate, None when all passed."""
        return next((stage.stage for stage in self.stages if not stage.passed), None)

    def added_loss_db(self) -> tuple[float | None, ...]:
        """What each stage lost of its worst SQNR, in dB, against the stage before it; negative is a gain.

        None for the first stage and where either was not measured; 0 when both are exact.
        """
        levels = [stage.worst().sqnr_db for stage in self.stages]
        return (None, *(_loss(before, after) for before, after in pairwise(levels)))


def write_report(report: DriftReport, path: Path) -> None:
    """Write the report as indented JSON, infinities as text."""
    path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_report(path: Path) -> DriftReport:
    """Read what `write_report` wrote. Raises UsageError for broken JSON, unknown fields or a newer schema."""
    return read_document(path, DriftReport, SCHEMA_VERSION, "drift report")


def _merged(name: str, outputs: Sequence[OutputDrift]) -> OutputDrift:
    broken = [output for output in outputs if output.failure]
    if broken:
        where = f"'{broken[0].name}' {broken[0].failure}"
        return OutputDrift(name=name, failure=f"fails in {len(broken)} of {len(outputs)}: {where}")
    return OutputDrift(
        name=name,
        sqnr_db=_extreme(min, [output.sqnr_db for output in outputs]),
        cosine=_extreme(min, [output.cosine for output in outputs]),
        relative_l2=_extreme(max, [output.relative_l2 for output in outputs]),
        max_abs=_extreme(max, [output.max_abs for output in outputs]),
    )


def _extreme(choose: Any, values: Sequence[float | None]) -> float | None:
    if any(value is None for value in values):
        return None
    return float(choose(values))


def _loss(before: float | None, after: float | None) -> float | None:
    if before is None or after is None:
        return None
    return 0.0 if before == after else before - after
