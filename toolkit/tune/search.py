"""A search from a request to its result: one export, a record that outlives interruptions, and trials until it ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import __version__, plugins
from toolkit.drift.gates import describe
from toolkit.errors import UnsupportedError
from toolkit.plan import Plan, Request, plan
from toolkit.progress import Watch
from toolkit.recipe.document import Quantization, Recipe
from toolkit.recipe.own import own_recipe
from toolkit.recipe.request import anchored, recipe_of
from toolkit.target import Target, parse_target, schemes_for
from toolkit.tune.laboratory import Bench, Ended, Limits
from toolkit.tune.record import Record
from toolkit.tune.result import Objective, Trial, TuneResult
from toolkit.tune.strategy import search
from toolkit.tune.workload import Workload
from toolkit.types import Gate

if TYPE_CHECKING:
    from toolkit.workbench import Workbench

__all__ = ["Search", "prepare"]


@dataclass(frozen=True, slots=True)
class Search:
    """A search that makes sense: the model's plan for all schemes of the runtime, and the drift that is allowed."""

    plan: Plan
    runtime: str
    objective: Objective
    gate: Gate
    workload: Workload | None

    @property
    def shape(self) -> str:
        """What everybody is timed by."""
        return self.workload.shape if self.workload else "not timed"

    def run(self, watch: Watch, *, minutes: float, trials: int | None = None) -> TuneResult:
        """Search, or take an earlier search up again, and answer what is in the output folder when it ends.

        Raises UsageError where that folder holds a search of other settings, and as the line's own stages do where
        the model cannot be exported or fp32 cannot be built; what fails of a single recipe is its trial's reason.
        """
        from toolkit.workbench import Workbench

        until = time.monotonic() + 60 * minutes
        record = Record(self.plan.request.output, self._header(), self.recipe)
        # Before the export, as far as can be told by then.
        record.take_up()
        with Workbench.open(self.plan, watch) as workbench:
            record.header = self._header(workbench)
            record.take_up()
            limits = Limits(until, trials)
            bench = Bench(workbench, self.runtime, self.gate, record, limits, watch, self.workload)
            try:
                schemes = [target.scheme for target in self.plan.targets]
                search(bench, schemes, self.objective, self.gate)
                finished = True
            except Ended:
                finished = False
            finally:
                bench.close()
            return record.write(finished=finished)

    def recipe(self, trial: Trial) -> Recipe:
        """The recipe file of a trial: an export of it is held to the very gate of this search."""
        request, target = self.plan.request, parse_target(trial.target)
        own = own_recipe(target, self.plan.spec).gate
        # What the scheme bounds and the budget does not is not to be held against the export either.
        bounds = {**dict.fromkeys(_bounds(describe(own)), "off"), **_bounds(describe(self.gate))}
        bounds |= {key: bound for key, bound in _bounds(request.drift_gate).items() if bounds.get(key) != "off"}
        return anchored(
            recipe_of(
                replace(
                    request,
                    targets=(trial.target,),
                    recipe=Quantization.model_validate(trial.quantization),
                    drift_gate=",".join(f"{key}={bound}" for key, bound in bounds.items()),
                )
            )
        )

    def _header(self, workbench: Workbench | None = None) -> dict[str, Any]:
        """What identifies the search; the hashes of graph and data are known once there is a workbench."""
        from toolkit.bundle.write import library_versions

        blank = Trial(index=0, target=f"{self.runtime}-fp32", status="measured")
        return {
            "model": self.plan.spec.name,
            "runtime": self.runtime,
            "objective": self.objective,
            "gate": self.gate,
            "shape": self.shape,
            "machine": _machine(),
            "settings": {
                "request": self.recipe(blank).model_dump(mode="json", by_alias=True, exclude_defaults=True),
                "toolkit": __version__,
                "libraries": library_versions(),
                **(_hashes(workbench) if workbench else {}),
            },
        }


def prepare(request: Request, runtime: str, objective: Objective, sizes: Mapping[str, int] | None = None) -> Search:
    """Resolve the model and refuse what cannot be searched, before any weight is read.

    The drift that is allowed is that of the model's int8, with what the request's drift gate replaces of it: one
    budget for all schemes. Raises UnsupportedError where the runtime has no fp32 or speed cannot be measured here,
    UsageError for a size that the model does not have.
    """
    _require_fp32(runtime)
    base = plan(replace(request, targets=(f"{runtime}-fp32",), recipe=Quantization()))
    schemes = schemes_for(runtime, base.spec.kind)
    whole = replace(base, targets=tuple(Target(runtime, scheme) for scheme in schemes))
    workload = None
    if objective != "size":
        _require_timing(runtime)
        workload = Workload(whole.spec, dict(sizes or {}))
    budget = whole.target_gate(Target(runtime, "int8" if "int8" in schemes else "fp32"))
    return Search(whole, runtime, objective, budget, workload)


def _require_fp32(runtime: str) -> None:
    taken = plugins.find("runtimes", runtime).literals.get("SCHEMES", ())
    if "fp32" not in taken:
        raise UnsupportedError(
            f"runtime '{runtime}' has no fp32, which all trials are measured against",
            hint=f"Export its schemes at once ({', '.join(taken)}): the last table has the drift and size of each.",
        )


def _require_timing(runtime: str) -> None:
    ready = plugins.runtime(runtime).readiness()
    if not ready.run:
        raise UnsupportedError(
            f"speed on {runtime} cannot be measured here: {ready.reason}",
            hint="With --objective size nothing is timed: drift and bytes alone decide.",
        )


def _bounds(gate: str) -> dict[str, str]:
    """The bounds of a gate as they are typed, by their keys."""
    parts = (part.partition("=") for part in gate.split(",") if part.strip())
    return {key.strip().replace("-", "_"): bound.strip() for key, _, bound in parts}


def _hashes(workbench: Workbench) -> dict[str, str]:
    return {"exported graph": workbench.exported.sha256, "calibration data": workbench.calibration.sha256}


def _machine() -> str:
    from toolkit.machine import machine

    found = machine(Path.cwd())
    return f"{found['cpu']}, {found['usable_cpus']} processors"
