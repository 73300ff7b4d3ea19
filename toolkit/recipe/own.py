"""A scheme's own recipe for a model, in the form that a runtime takes."""

from __future__ import annotations

from toolkit import plugins
from toolkit.target import Target
from toolkit.types import ModelSpec, QuantConfig, WeightOnly

__all__ = ["own_recipe"]


def own_recipe(target: Target, spec: ModelSpec) -> QuantConfig:
    """What the target's scheme does with this model, before the user changes anything.

    A runtime that cannot run a scheme's activations lists it in its literal `WEIGHT_ONLY`, and takes its weights alone.
    """
    scheme = plugins.scheme(target.scheme)
    alone = target.scheme in plugins.find("runtimes", target.runtime).literals.get("WEIGHT_ONLY", ())
    return scheme.weight_only(spec) if alone and isinstance(scheme, WeightOnly) else scheme.recipe(spec)
