"""A precision for single layers: which schemes that takes, what they can be mixed with, and their recipes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from toolkit import plugins
from toolkit.errors import UnsupportedError, UsageError
from toolkit.recipe.changes import tuned
from toolkit.recipe.document import Quantization
from toolkit.recipe.own import own_recipe
from toolkit.target import Target, schemes_for
from toolkit.types import ModelSpec, QuantConfig

__all__ = ["check_layers", "own_recipes", "recipe_of_target", "schemes_used"]

_SCHEMES = ("int8", "int4")
"""The precisions that are schemes of their own where the target's is another."""


def schemes_used(changes: Quantization, scheme: str, spec: ModelSpec) -> tuple[str, ...]:
    """The target's scheme, and those that single layers take beside it."""
    weights = plugins.scheme(scheme).recipe(spec).weights
    named = dict.fromkeys(changes.layers.values())
    allowed = set(_mixed_with(scheme, spec)) & set(_SCHEMES)
    return (scheme, *(name for name in named if name in allowed and name != weights))


def own_recipes(changes: Quantization, target: Target, spec: ModelSpec) -> dict[str, QuantConfig]:
    """The recipes of those schemes as they stand, by their names, the target's first."""
    names = schemes_used(changes, target.scheme, spec)
    return {name: own_recipe(Target(target.runtime, name), spec) for name in names}


def recipe_of_target(changes: Quantization, target: Target, spec: ModelSpec) -> QuantConfig:
    """The recipe of the target's scheme with what the user changed, and with those of the schemes beside it."""
    own, *beside = own_recipes(changes, target, spec).items()
    return replace(tuned(changes, own[1]), others={name: tuned(changes, recipe) for name, recipe in beside})


def check_layers(changes: Quantization, targets: Sequence[Target], spec: ModelSpec) -> None:
    """Refuse a precision of single layers that a target's scheme cannot be mixed with, or its runtime does not take.

    A scheme that gives no layer a precision of its own may stand beside others that do.
    Raises UsageError or UnsupportedError that names what can be.
    """
    if not changes.layers:
        return
    mixing = [target for target in targets if _mixed_with(target.scheme, spec)]
    if not mixing:
        raise UsageError(
            f"{', '.join(map(str, targets))} cannot give single layers a precision of their own",
            hint=f"Choose a scheme that quantizes, as {targets[0].runtime}-int8, and name the layers to be kept fp32.",
        )
    for target in mixing:
        for precision in dict.fromkeys(changes.layers.values()):
            _check(precision, target, spec)


def _check(precision: str, target: Target, spec: ModelSpec) -> None:
    allowed = _mixed_with(target.scheme, spec)
    if precision not in allowed:
        raise UsageError(
            f"layers of {target} cannot be {precision}",
            hint=f"They can be: {', '.join(allowed)}. To mix int8 and int4, choose a target of one of them.",
        )
    taken = schemes_for(target.runtime, spec.kind)
    needed = precision in _SCHEMES and precision != plugins.scheme(target.scheme).recipe(spec).weights
    if needed and precision not in taken:
        raise UnsupportedError(
            f"runtime '{target.runtime}' does not take {precision} for models of kind '{spec.kind}'",
            hint=f"Layers of {target} can be: {', '.join(each for each in allowed if each in {'fp32', *taken})}.",
        )


def _mixed_with(scheme: str, spec: ModelSpec) -> tuple[str, ...]:
    """fp32 and its half in storage beside what is quantized; integers beside integers; fp32 beside half precision."""
    weights = plugins.scheme(scheme).recipe(spec).weights
    if weights is None:
        return ()
    if weights in _SCHEMES:
        return ("fp32", "fp16", *_SCHEMES)
    return {"float16": ("fp32", "fp16"), "bfloat16": ("fp32",)}.get(weights, ("fp32", "fp16"))
