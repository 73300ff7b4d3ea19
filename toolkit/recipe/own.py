"""A scheme's own recipe for a model, in the form that a runtime takes."""

from __future__ import annotations

from dataclasses import replace

from toolkit import plugins
from toolkit.target import Target
from toolkit.types import ModelSpec, QuantConfig, WeightOnly

__all__ = ["own_recipe"]


def own_recipe(target: Target, spec: ModelSpec) -> QuantConfig:
    """What the target's scheme does with this model, before the user changes anything.

    A runtime that cannot run a scheme's activations lists it in its literal `WEIGHT_ONLY`, and takes its weights alone;
    one that takes unsigned activations with a zero point lists the scheme in `UNSIGNED`.
    """
    scheme = plugins.scheme(target.scheme)
    literals = plugins.find("runtimes", target.runtime).literals
    if target.scheme in literals.get("WEIGHT_ONLY", ()) and isinstance(scheme, WeightOnly):
        return scheme.weight_only(spec)
    recipe = scheme.recipe(spec)
    unsigned = target.scheme in literals.get("UNSIGNED", ()) and recipe.activations == "int8"
    return replace(recipe, activations="uint8") if unsigned else recipe
