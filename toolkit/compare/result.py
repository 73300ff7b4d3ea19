"""What a comparison says, as frozen values that survive JSON exactly; `toolkit report` draws from it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, FiniteFloat, NonNegativeInt, model_validator

from toolkit.atomic import write_whole
from toolkit.document import Frozen, read_document
from toolkit.drift.report import Metric

__all__ = [
    "SCHEMA_VERSION",
    "AttentionPicture",
    "Comparison",
    "HeadDrift",
    "Histogram",
    "ModuleDrift",
    "StageModules",
    "read_comparison",
    "write_comparison",
]

SCHEMA_VERSION = 1


class Histogram(Frozen):
    """Counts between neighbouring edges: one count fewer than there are edges, which are finite and increase."""

    edges: tuple[FiniteFloat, ...] = Field(min_length=2)
    counts: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        rising = all(left < right for left, right in pairwise(self.edges))
        if len(self.counts) != len(self.edges) - 1 or not rising:
            raise ValueError("a histogram needs edges that increase and one count fewer")
        return self


class ModuleDrift(Frozen):
    """One module's output, reference against candidate, at its worst over all inputs; in the order of execution.

    `module` is its path in the PyTorch model, `kind` its class or operator, `tensor` the candidate's tensor.
    `added` is the noise that appears at this module: its noise-to-signal power ratio above that of the tensors it
    reads, never negative. `reference_absmax` and `candidate_absmax` are the largest magnitudes, `weight_absmax` that of
    its weight; `overflow` says that one is beyond what the candidate's number type holds.
    `bad` says that its SQNR is below the comparison's threshold. Metrics are None where `failure` says why.
    """

    module: str
    kind: str = ""
    tensor: str = ""
    shape: tuple[int | str, ...] = ()
    sqnr_db: Metric | None = None
    cosine: Metric | None = None
    relative_l2: Metric | None = None
    max_abs: Metric | None = None
    added: Metric | None = None
    reference_absmax: Metric | None = None
    candidate_absmax: Metric | None = None
    weight_absmax: Metric | None = None
    overflow: bool = False
    bad: bool = False
    failure: str = ""


class HeadDrift(Frozen):
    """One head's attention map: Jensen-Shannon divergence (nats a query), entropies (nats), top-token agreement (0-1).

    All are means over the queries that attend to anything, of all inputs.
    """

    module: str
    head: int = Field(ge=0)
    divergence: Metric
    reference_entropy: Metric
    candidate_entropy: Metric
    top1_agreement: Metric


class AttentionPicture(Frozen):
    """A layer's maps for one input, as two greyscale PNGs in base64: [queries, keys], the reference's and candidate's.

    `head` is the one whose divergence is the largest; `labels` are the tokens, empty for image patches.
    """

    module: str
    head: int
    input: str
    reference_png: str
    candidate_png: str
    labels: tuple[str, ...] = ()


class StageModules(Frozen):
    """One stage's graph against the reference, module by module; `ran_on` as in the drift report."""

    stage: str
    ran_on: str
    modules: tuple[ModuleDrift, ...]


class Comparison(Frozen):
    """Reference and candidate module by module; `first_bad` is the first in execution order below `threshold_db`.

    `guilty` are the modules that add most noise, worst first. `stages` has the same modules after each stage of the
    candidate's line, where they were asked for; `skipped` says which modules could not be tapped, and why.
    `error` is the distribution of the error of the candidate's first output, in the output's own unit.
    """

    schema_version: Literal[1] = 1
    reference: str
    candidate: str
    reference_ran_on: str
    candidate_ran_on: str
    inputs: str
    threshold_db: float
    modules: tuple[ModuleDrift, ...]
    first_bad: str | None = None
    guilty: tuple[str, ...] = ()
    attention: tuple[HeadDrift, ...] = ()
    pictures: tuple[AttentionPicture, ...] = ()
    stages: tuple[StageModules, ...] = ()
    skipped: dict[str, str] = Field(default_factory=dict)
    error: Histogram | None = None


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the comparison as indented JSON, infinities as text. Raises UsageError where the file cannot be written."""
    write_whole(path, comparison.model_dump_json(indent=2) + "\n")


def read_comparison(path: Path) -> Comparison:
    """Read what `toolkit compare --output FILE` wrote. Raises UsageError where it is not that."""
    return read_document(path, Comparison, SCHEMA_VERSION, "comparison", "Write one: toolkit compare … --output FILE.")
