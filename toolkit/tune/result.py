"""What a search found, as frozen values that survive JSON exactly; `toolkit report` draws its Pareto from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toolkit.document import Frozen, read_document
from toolkit.drift.report import FiniteGate, Metric

__all__ = ["SCHEMA_VERSION", "Objective", "Trial", "TuneResult", "read_tuning"]

SCHEMA_VERSION = 1
Objective = Literal["speed", "size", "both"]


class Trial(Frozen):
    """One recipe tried: its target and quantization section, what it drifted, weighs and takes.

    `ratio` is how many times as fast as the fp32 trial it ran, by the medians of interleaved rounds, `ratio_low` and
    `ratio_high` the 10th and 90th percentile of rounds; `bytes` is the size of graph, weights and engine on disk.
    `status`: `measured`; `drifted` (past the gate, so not timed); `failed` with the `reason`.
    """

    index: int = Field(ge=0)
    target: str
    quantization: dict[str, Any] = Field(default_factory=dict)
    status: Literal["measured", "drifted", "failed"]
    reason: str = ""
    sqnr_db: Metric | None = None
    cosine: Metric | None = None
    task: str = ""
    bytes: int | None = None
    median_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    seconds: float = 0.0


class TuneResult(Frozen):
    """All trials of one search; trial 0 is fp32. `pareto` and `winner` are indices of trials within the gate.

    `pareto` is the front of SQNR against what the objective names: speed (`ratio`), size (`bytes`), or all three.
    `verdict` is the answer in a sentence: what pays here, or that nothing does. `finished` is False where the time
    budget, the limit of trials or an interruption ended the search. `settings` is what was asked for, with the hashes
    of the exported graph and of the calibration data: trials of other settings are not to be mixed with these.
    """

    schema_version: Literal[1] = 1
    model: str
    runtime: str
    objective: Objective
    gate: FiniteGate
    shape: str
    machine: str
    ran_on: str
    trials: tuple[Trial, ...] = Field(min_length=1)
    pareto: tuple[int, ...] = ()
    winner: int | None = None
    verdict: str = ""
    finished: bool = True
    settings: dict[str, Any] = Field(default_factory=dict)


def read_tuning(path: Path) -> TuneResult:
    """Read a search's `tune.json`. Raises UsageError where it is not that."""
    return read_document(path, TuneResult, SCHEMA_VERSION, "tuning", "Give the folder that toolkit tune wrote.")
