"""Trying one recipe: quantize, lower, build, measure its drift, and where it holds the gate time it against fp32."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from toolkit import disk, plugins
from toolkit.drift.gates import judge
from toolkit.drift.table import task_words
from toolkit.hashing import data_path
from toolkit.progress import Watch
from toolkit.recipe.own import own_recipe
from toolkit.target import Target
from toolkit.tune.result import Trial
from toolkit.tune.sensitivity import ModuleNoise, module_noises
from toolkit.tune.timing import Stopwatch, Timing
from toolkit.tune.words import changes_of, speed_words

if TYPE_CHECKING:
    from toolkit.recipe.document import Quantization
    from toolkit.tune.record import Record
    from toolkit.tune.workload import Contender, Workload
    from toolkit.types import Engine, Gate, QuantConfig
    from toolkit.workbench import Attempt, Workbench

__all__ = ["Bench", "Ended", "Limits", "engine_bytes"]


class Ended(Exception):  # noqa: N818 - it ends a search, it is no error
    """The time or the number of trials that were allowed is used up."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When no further trial begins: a moment of `time.monotonic()`, and a number of trials in all.

    The first, fp32, is always tried: without it there is nothing to say.
    """

    until: float
    trials: int | None = None

    def require(self, done: int) -> None:
        """Raise Ended where that is reached."""
        if done and (time.monotonic() >= self.until or (self.trials is not None and done >= self.trials)):
            raise Ended


@dataclass
class Bench:
    """The workbench with a drift budget, a stopwatch, and a record of what was tried.

    `workload` is what everybody is timed by, None where nothing is timed.
    """

    workbench: Workbench
    runtime: str
    gate: Gate
    record: Record
    limits: Limits
    watch: Watch
    workload: Workload | None = None
    _stopwatch: Stopwatch | None = field(default=None, init=False)
    _graphs: dict[str, Trial] = field(default_factory=dict, init=False)

    def close(self) -> None:
        """Close the fp32 session."""
        if self._stopwatch is not None:
            self._stopwatch.baseline.close()

    @property
    def ranges(self) -> Sequence[str]:
        """What may have a scale among activations, as the runtime lists it; none where it lists nothing."""
        return tuple(plugins.find("runtimes", self.runtime).literals.get("RANGES", ()))

    def recipe(self, scheme: str) -> QuantConfig:
        """The scheme's own recipe for the model."""
        return own_recipe(Target(self.runtime, scheme), self.workbench.plan.spec)

    def noises(self, scheme: str, changes: Quantization) -> Sequence[ModuleNoise]:
        """Measured in one session for int8 and int4; none for other schemes."""
        plan = self.workbench.plan
        recipe = replace(plan, request=replace(plan.request, recipe=changes)).recipe(Target(self.runtime, scheme))
        if recipe.weights not in ("int8", "int4"):
            return ()
        self.limits.require(len(self.record.trials))
        with self.watch.stage("modules", scheme) as row:
            found = module_noises(self.workbench.exported, recipe, self.workbench.calibration)
            worst = max(found, key=lambda each: each.noise, default=None)
            row.said = f"{len(found)} measured, most noise by {worst.module}" if worst else "none to measure"
        return found

    def trial(self, scheme: str, changes: Quantization) -> Trial:
        """The recorded trial of that recipe, or a new one, which is recorded. Raises Ended at the limits."""
        target = Target(self.runtime, scheme)
        plain = changes.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        known = self.record.find(str(target), plain)
        if known is not None:
            return known
        self.limits.require(len(self.record.trials))
        blank = Trial(index=len(self.record.trials), target=str(target), quantization=plain, status="failed")
        with self.watch.stage("trial", str(blank.index)) as row:
            start = time.monotonic()
            made = self._tried(blank, target, changes)
            trial = made.model_copy(update={"seconds": round(time.monotonic() - start, 3)})
            row.said = _said(trial)
        self.record.append(trial)
        return trial

    def _tried(self, blank: Trial, target: Target, changes: Quantization) -> Trial:
        try:
            attempt = self.workbench.attempt(target, changes)
        except Exception as error:  # whatever one recipe breaks, the others are still to be tried
            if target.scheme == "fp32" or disk.is_full(error):
                raise
            return blank.model_copy(update={"reason": f"{type(error).__name__}: {error}"})
        try:
            return self._same(blank, attempt) or self._measured(blank, attempt)
        finally:
            if target.scheme != "fp32":
                shutil.rmtree(attempt.folder, ignore_errors=True)

    def _same(self, blank: Trial, attempt: Attempt) -> Trial | None:
        """What was measured of another recipe that made the very same graph, as a block size that nothing takes."""
        earlier = self._graphs.get(attempt.lowered.sha256)
        if earlier is None:
            return None
        own = {"index": blank.index, "target": blank.target, "quantization": blank.quantization}
        return earlier.model_copy(update={**own, "reason": f"the same graph as trial {earlier.index}"})

    def _measured(self, blank: Trial, attempt: Attempt) -> Trial:
        trial = self._judged(blank, attempt)
        self._graphs[attempt.lowered.sha256] = trial
        return trial

    def _judged(self, blank: Trial, attempt: Attempt) -> Trial:
        drift = judge(attempt.drift, self.gate)
        worst = drift.worst()
        if attempt.target.scheme == "fp32":
            self.record.ran_on = drift.ran_on
        facts: dict[str, Any] = {
            "sqnr_db": worst.sqnr_db,
            "cosine": worst.cosine,
            "task": task_words(drift.task) if drift.task else "",
            "bytes": engine_bytes(attempt.engine),
        }
        broken = drift.failures or self._quantized(attempt)
        if broken:
            return blank.model_copy(update={**facts, "status": "drifted", "reason": "; ".join(broken)})
        return blank.model_copy(update={**facts, "status": "measured", **self._timed(attempt)})

    def _quantized(self, attempt: Attempt) -> tuple[str, ...]:
        """What the graph before lowering breaks of the gate, which it may by a hair's breadth."""
        drift = self.workbench.quantized_drift(attempt, self.gate)
        return tuple(f"stage 'quantize': {broken}" for broken in drift.failures) if drift else ()

    def _timed(self, attempt: Attempt) -> dict[str, float]:
        if self.workload is None:
            return {}
        if attempt.target.scheme == "fp32":
            return _times(self._against_fp32(attempt).alone())
        stopwatch = self._against_fp32()
        contender = self._contender(attempt)
        try:
            return _times(stopwatch.against(contender))
        finally:
            contender.close()

    def _against_fp32(self, attempt: Attempt | None = None) -> Stopwatch:
        """The stopwatch, its fp32 engine built anew where a search is taken up again."""
        if self._stopwatch is None:
            from toolkit.recipe.document import Quantization

            made = attempt or self.workbench.attempt(Target(self.runtime, "fp32"), Quantization())
            self._stopwatch = Stopwatch(self._contender(made))
        return self._stopwatch

    def _contender(self, attempt: Attempt) -> Contender:
        if self.workload is None:
            raise ValueError("nothing is timed in a search without a workload")
        return self.workload.open(attempt, self.workbench.reference.golden[0])


def engine_bytes(engine: Engine) -> int:
    """Bytes on disk of the graph, its weights and the engine's other files."""
    graph = engine.graph.path
    paths = {graph, data_path(graph), *(graph.parent / file for file in engine.files)}
    total = 0
    for path in paths:
        # Only a graph without weights of its own lacks one of these.
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _times(timing: Timing) -> dict[str, float]:
    ratio = timing.ratio
    return {
        "median_ms": timing.median_ms, "ratio": ratio.median, "ratio_low": ratio.p10, "ratio_high": ratio.p90
    }  # fmt: skip


def _said(trial: Trial) -> str:
    level = "" if trial.sqnr_db is None else f"SQNR {trial.sqnr_db:.1f} dB"
    last = "past the gate" if trial.status == "drifted" else speed_words(trial) if trial.index else ""
    reason = "" if trial.status == "drifted" else trial.reason
    return f"{changes_of(trial)}: {', '.join(filter(None, (level, last, reason)))}"
