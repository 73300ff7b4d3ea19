"""Finding the layers that must stay in higher precision: attempts on one workbench, each through the whole line."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape
from typing import TYPE_CHECKING, Literal

from toolkit.bisect.order import by_weights, quantized_modules
from toolkit.bisect.result import BisectAttempt, BisectResult
from toolkit.bisect.search import smallest
from toolkit.drift.gates import judge
from toolkit.errors import StageError
from toolkit.progress import Silent, Watch
from toolkit.recipe.changes import require_taken
from toolkit.recipe.document import Quantization
from toolkit.recipe.own import own_recipe
from toolkit.target import Target

if TYPE_CHECKING:
    from toolkit.drift.report import StageDrift
    from toolkit.workbench import Attempt, Workbench

__all__ = ["bisect"]

_UNQUANTIZED = "fp32"


def bisect(
    bench: Workbench,
    target: Target,
    quantization: Quantization | None = None,
    ranking: Sequence[str] | None = None,
    watch: Watch | None = None,
) -> BisectResult:
    """The smallest set of modules that must not be quantized for the target to pass its gate.

    `quantization` is what the recipe changes already, the request's own by default; what it excludes stays excluded.
    `ranking` has modules to suspect, worst first, as a comparison's `guilty`; the others come after, by what rounding
    their weights does. The order only saves attempts: the answer does not rest on it. `watch` is told each attempt.
    Raises UsageError for a scheme that excludes nothing, and as the line's own stages do.
    """
    given = bench.plan.request.recipe if quantization is None else quantization
    recipe = own_recipe(target, bench.plan.spec)
    require_taken(Quantization(exclude=("*",)), [{target.scheme: recipe}])
    kept = given if given.exclude else given.model_copy(update={"exclude": recipe.exclude})
    trials = _Trials(bench, target, kept, watch or Silent())
    first = trials.first(given)
    if first.passed:
        return trials.result("held", given)
    everything = trials.all()
    if not everything.passed:
        return trials.result("hopeless", given, failures=everything.drift.failures)
    found = smallest(_order(trials, ranking), lambda excluded: trials.attempt(excluded).passed)
    excluded = [module for module in trials.modules if module in found]
    return trials.result("found", trials.with_excluded(excluded), excluded)


@dataclass
class _Trials:
    """Attempts by the set that they exclude, each made once; `modules` are those that can be excluded."""

    bench: Workbench
    target: Target
    kept: Quantization
    watch: Watch
    modules: list[str] = field(default_factory=list)
    made: dict[frozenset[str], BisectAttempt] = field(default_factory=dict)

    def first(self, given: Quantization) -> BisectAttempt:
        """The recipe as it is, which shows what it quantizes."""
        start = time.monotonic()
        with self.watch.stage("bisect", str(self.target)) as row:
            drift, self.modules = self._measured(self.target, given)
            made = self._note((), drift, start)
            row.said = self._said(made)
        return made

    def all(self) -> BisectAttempt:
        """Everything excluded; where that leaves the scheme nothing to do, the model in fp32, held to the same gate."""
        try:
            return self.attempt(self.modules)
        except StageError as error:
            if error.stage != "quantize":
                raise
        start = time.monotonic()
        with self.watch.stage("bisect", str(self.target)) as row:
            drift, _ = self._measured(Target(self.target.runtime, _UNQUANTIZED), Quantization())
            gate = self.bench.plan.target_gate(self.target)
            made = self._note(self.modules, judge(drift, gate), start)
            row.said = self._said(made)
        return made

    def attempt(self, excluded: Sequence[str]) -> BisectAttempt:
        """The target with these modules left out of the quantization."""
        known = self.made.get(frozenset(excluded))
        if known is not None:
            return known
        start = time.monotonic()
        with self.watch.stage("bisect", str(self.target)) as row:
            drift, _ = self._measured(self.target, self.with_excluded(excluded))
            made = self._note(excluded, drift, start)
            row.said = self._said(made)
        return made

    def with_excluded(self, excluded: Sequence[str]) -> Quantization:
        """The recipe with these modules beside what it excludes already."""
        patterns = dict.fromkeys([*self.kept.exclude, *(escape(module) for module in excluded)])
        return self.kept.model_copy(update={"exclude": tuple(patterns)})

    def result(
        self,
        outcome: Literal["held", "found", "hopeless"],
        quantization: Quantization,
        excluded: Sequence[str] = (),
        failures: Sequence[str] = (),
    ) -> BisectResult:
        """What there is to say, with all attempts."""
        return BisectResult(
            model=self.bench.plan.spec.name,
            target=str(self.target),
            gate=self.bench.plan.target_gate(self.target),
            outcome=outcome,
            excluded=tuple(excluded),
            minimal=bool(excluded) and self._is_minimal(excluded),
            candidates=len(self.modules),
            quantization=quantization,
            attempts=tuple(self.made.values()),
            failures=tuple(failures),
        )

    def _is_minimal(self, excluded: Sequence[str]) -> bool:
        """Whether it was measured that each one is needed."""
        fewer = (frozenset(excluded) - {module} for module in excluded)
        return all(each in self.made and not self.made[each].passed for each in fewer)

    def _measured(self, target: Target, quantization: Quantization) -> tuple[StageDrift, list[str]]:
        made = self.bench.attempt(target, quantization)
        try:
            return self._worse(made), quantized_modules(made.quantized.path)
        finally:
            shutil.rmtree(made.folder, ignore_errors=True)

    def _worse(self, made: Attempt) -> StageDrift:
        """That of what ships, or of the graph before it was lowered where only that one breaks the gate."""
        before = self.bench.quantized_drift(made, made.drift.gate) if made.drift.passed else None
        return made.drift if before is None or before.passed else before

    def _note(self, excluded: Sequence[str], drift: StageDrift, start: float) -> BisectAttempt:
        seconds = round(time.monotonic() - start, 3)
        in_order = tuple(module for module in self.modules if module in set(excluded))
        made = BisectAttempt(excluded=in_order, drift=drift, seconds=seconds)
        self.made[frozenset(excluded)] = made
        return made

    def _said(self, made: BisectAttempt) -> str:
        sqnr = made.drift.worst().sqnr_db
        level = "" if sqnr is None else f", SQNR {sqnr:.1f} dB"
        gate = "the gate holds" if made.passed else f"the gate fails: {'; '.join(made.drift.failures)}"
        return f"{len(made.excluded)} of {len(self.modules)} layers excluded: {gate}{level}"


def _order(trials: _Trials, ranking: Sequence[str] | None) -> list[str]:
    """All modules: the suspects that were named, then the others by what was measured."""
    bench = trials.bench
    levels = 7 if own_recipe(trials.target, bench.plan.spec).weights == "int4" else 127
    with trials.watch.stage("rank", str(trials.target)) as row:
        measured = by_weights(bench.exported.path, trials.modules, bench.reference.golden[0], levels)
        row.said = f"by what rounding one weight does to the outputs: {', '.join(measured[:3])}"
    suspects = [module for module in dict.fromkeys(ranking or ()) if module in trials.modules]
    return [*suspects, *(module for module in measured if module not in suspects)]
