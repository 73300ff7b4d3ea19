"""From what the user typed to a plan: the model resolved, the targets known, and all refused that cannot work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from exporters import OPSETS
from model_zoo import resolve
from toolkit import plugins
from toolkit.compiled import ChecksOptions
from toolkit.data_source import NO_DATA, require_there
from toolkit.drift.gates import TASK_BOUNDS, parse_gate
from toolkit.errors import UnsupportedError, UsageError
from toolkit.recipe.changes import require_taken, taken
from toolkit.recipe.document import Data, Quantization
from toolkit.recipe.layers import check_layers, own_recipes, recipe_of_target
from toolkit.recipe.own import own_recipe
from toolkit.recipe.runtimes import check_runtimes
from toolkit.target import Target, parse_target, schemes_for
from toolkit.types import (
    DEFAULT_OPTIONS,
    Calibration,
    Dim,
    Evaluation,
    Gate,
    Kind,
    ModelSpec,
    QuantConfig,
    TargetOptions,
)

__all__ = ["OPTION_FLAGS", "Plan", "Request", "no_engine", "plan"]


@dataclass(frozen=True, slots=True)
class Request:
    """What the user typed, one field an option of `toolkit export`."""

    model: str
    targets: Sequence[str]
    output: Path = Path("bundles")
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    seed: int = 0
    calibration: Data = field(default_factory=Data)
    evaluation: Data | None = None
    dims: Mapping[str, Dim] = field(default_factory=dict)
    opset: int | None = None
    drift_gate: str = ""
    recipe: Quantization = field(default_factory=Quantization)
    options: TargetOptions = DEFAULT_OPTIONS
    require_engine: bool = False
    allow_unfused: bool = False
    offline: bool = False
    trust_remote_code: bool = False
    last_logits: bool = False
    task: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A request found to make sense: the model is resolved, every target exists and takes it."""

    request: Request
    spec: ModelSpec
    targets: tuple[Target, ...]

    def folder(self, target: Target) -> Path:
        """Where the bundle of that target goes."""
        return self.request.output / f"{self.spec.name}-{target}"

    def gate(self, base: Gate) -> Gate:
        """The scheme's gate with the bounds that the user replaced."""
        return parse_gate(self.request.drift_gate, base) if self.request.drift_gate else base

    def scheme_gate(self, scheme: str) -> Gate:
        """The gate of that scheme for this model, with the bounds that the user replaced."""
        return self.gate(plugins.scheme(scheme).recipe(self.spec).gate)

    def target_gate(self, target: Target) -> Gate:
        """The gate of the target's scheme, in the form that its runtime takes, with the same."""
        return self.gate(own_recipe(target, self.spec).gate)

    def calibrate(self) -> Calibration:
        """The data that activations are measured on; read once here, so that a bad file is told at once."""
        return plugins.family(self.spec.family).calibration(self.spec, self.request.calibration)

    def evaluate(self) -> Evaluation | None:
        """The held-out data that reference and stages are judged on: the user's, else the family's own if it has any.

        Read here, as calibration data is. None where there is none, or the user wants none.
        """
        data = self.request.evaluation or Data()
        return None if data.source == NO_DATA else plugins.family(self.spec.family).evaluation(self.spec, data)

    def recipe(self, target: Target) -> QuantConfig:
        """The recipe of the target's scheme for this model, with what the user changed."""
        return recipe_of_target(self.request.recipe, target, self.spec)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {
            "model": asdict(self.spec),
            "targets": {str(target): str(self.folder(target)) for target in self.targets},
        }

    def describe(self) -> str:
        """The plan in a few lines of text."""
        spec = self.spec
        inputs = ", ".join(f"{tensor.name}{list(tensor.shape)}" for tensor in spec.inputs)
        dims = ", ".join(f"{name} {dim.min}:{dim.opt}:{dim.max}" for name, dim in spec.dims.items())
        lines = [
            f"model    {spec.name}: {spec.architecture} ({spec.family}, {spec.weights} weights) from {spec.source}",
            f"inputs   {inputs}",
            f"outputs  {', '.join(tensor.name for tensor in spec.outputs)}",
            f"dims     {dims}",
            *(f"target   {target} → {self.folder(target)}" for target in self.targets),
        ]
        return "\n".join(lines)


def plan(request: Request) -> Plan:
    """Resolve the model and the targets and refuse what cannot work, before any weight is read."""
    targets = tuple(dict.fromkeys(parse_target(text) for text in request.targets))
    _check_values(request)
    _check_options(request.options, targets)
    spec = resolve(
        request.model,
        revision=request.revision,
        weights=request.weights,
        seed=request.seed,
        dims=request.dims,
        offline=request.offline,
        trust_remote_code=request.trust_remote_code,
        last_logits=request.last_logits,
        task=request.task,
    )
    if request.last_logits and spec.decoder is None:
        raise UsageError(
            f"--last-logits is for language models; {spec.name} is of kind '{spec.kind}'", hint="Leave it out."
        )
    if request.options.cache != DEFAULT_OPTIONS.cache and spec.decoder is None:
        raise UsageError(
            f"--kv-cache is for language models; {spec.name} is of kind '{spec.kind}'", hint="Leave it out."
        )
    the_plan = Plan(request, _of_fixed_size(spec, targets), targets)
    the_plan.gate(Gate())
    for target in targets:
        _check_kind("runtimes", "runtime", target.runtime, spec.kind)
        _check_kind("quantize.schemes", "scheme", target.scheme, spec.kind)
        _check_pair(target, spec.kind)
    check_layers(request.recipe, targets, spec)
    own = {target: own_recipes(request.recipe, target, spec) for target in targets}
    require_taken(request.recipe, list(own.values()))
    check_runtimes({each: taken(request.recipe, own[each].values()) for each in targets})
    if request.require_engine:
        _require_builders(targets)
    return the_plan


def _check_kind(group: plugins.Group, word: str, name: str, kind: Kind) -> None:
    """A plug-in that lists no kinds takes them all."""
    kinds = plugins.find(group, name).literals.get("KINDS", (kind,))
    if kind not in kinds:
        raise UnsupportedError(
            f"{word} '{name}' does not take models of kind '{kind}'", hint=f"{name} takes: {', '.join(kinds)}."
        )


def _of_fixed_size(spec: ModelSpec, targets: Sequence[Target]) -> ModelSpec:
    """The spec with no size above `opt` where the targets' engines have one fixed shape (`FIXED`).

    So every input of the line fits; the batch stays, which is fed row by row. Raises UsageError where another target
    of the same command would be narrowed too.
    """
    fixed = [target for target in targets if plugins.find("runtimes", target.runtime).literals.get("FIXED")]
    above = {name: dim for name, dim in spec.dims.items() if name != "batch" and dim.opt < dim.max}
    if not fixed or not above:
        return spec
    if len(fixed) < len(targets):
        sizes = " ".join(f"--dim {name}={dim.min}:{dim.opt}:{dim.opt}" for name, dim in above.items())
        raise UsageError(
            f"{fixed[0]} has one fixed size of {', '.join(above)}, the other targets a range",
            hint=f"Export it by a command of its own, or give all targets the same largest size: {sizes}.",
        )
    return replace(spec, dims={**spec.dims, **{name: replace(dim, max=dim.opt) for name, dim in above.items()}})


def _check_pair(target: Target, kind: Kind) -> None:
    schemes = schemes_for(target.runtime, kind)
    if target.scheme not in schemes:
        raise UnsupportedError(
            f"runtime '{target.runtime}' does not take scheme '{target.scheme}' for models of kind '{kind}'",
            hint=f"For these {target.runtime} takes: {', '.join(schemes)}.",
        )


def _check_options(options: TargetOptions, targets: Sequence[Target]) -> None:
    """An option that none of the targets takes is a mistake; one of several targets may leave it alone."""
    given = [flag for name, flag in OPTION_FLAGS.items() if getattr(options, name) != getattr(DEFAULT_OPTIONS, name)]
    taken = {
        flag for target in targets for flag in plugins.find("runtimes", target.runtime).literals.get("OPTIONS", ())
    }
    for flag in given:
        if flag not in taken:
            takers = [
                name for name, entry in plugins.listing("runtimes").items() if flag in entry.literals.get("OPTIONS", ())
            ]
            raise UsageError(
                f"--{flag} is not for {', '.join(map(str, targets))}",
                hint=f"It is for the runtimes {', '.join(takers)}; leave it out here.",
            )
    for target in targets if given else ():
        _ask_runtime(target, options)


def _ask_runtime(target: Target, options: TargetOptions) -> None:
    """A runtime may know what it cannot compile here: better said now than after the export."""
    runtime = plugins.runtime(target.runtime)
    if isinstance(runtime, ChecksOptions):
        runtime.check_options(options, target.scheme)


def _require_builders(targets: Sequence[Target]) -> None:
    """A runtime that builds nothing here does not build an engine after the export either."""
    for target in targets:
        ready = plugins.runtime(target.runtime).readiness()
        if not ready.build:
            raise no_engine(target, ready.reason)


def no_engine(target: Target, reason: str) -> UnsupportedError:
    """What `--require-engine` says where a target's engine cannot be built."""
    return UnsupportedError(
        f"no {target} engine can be built here: {reason}",
        hint="Without --require-engine the bundle carries the graph, from which one is built elsewhere.",
    )


OPTION_FLAGS = {
    "architectures": "arch",
    "seconds": "build-timeout",
    "memory": "build-memory",
    "cache": "kv-cache",
    "provider": "provider-option",
}
"""The option of `toolkit export` that sets each field of TargetOptions."""


def _check_values(request: Request) -> None:
    if request.opset is not None and request.opset not in OPSETS:
        raise UsageError(
            f"opset {request.opset} is not one that can be exported",
            hint=f"Give --opset {OPSETS[0]} to {OPSETS[-1]}, or leave it out.",
        )
    require_there(request.calibration)
    if request.evaluation:
        _check_evaluation(request.evaluation, request.drift_gate)


def _check_evaluation(given: Data, gate: str) -> None:
    asked = parse_gate(gate, Gate()) if gate else Gate()
    bounds = [bound.key for bound in TASK_BOUNDS if getattr(asked, bound.bound) is not None]
    if given.source == NO_DATA and bounds:
        raise UsageError(
            f"without held-out data nothing is measured that the bound on {' and '.join(bounds)} could hold",
            hint="Leave the bound out of --drift-gate, or give other data than --evaluation none.",
        )
    if given.source == NO_DATA and given.count is None and not given.column:
        return
    if given.source in ("", NO_DATA) and given != Data():
        raise UsageError(
            "a number or seed of evaluation samples goes with a set of your own",
            hint="Give --evaluation DIR, FILE or datasets:NAME, or leave the number out.",
        )
    require_there(given)
