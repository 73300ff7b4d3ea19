"""How a trial is named in tables and sentences."""

from __future__ import annotations

from collections import Counter

from toolkit.recipe.document import Quantization
from toolkit.target import parse_target
from toolkit.tune.result import Trial

__all__ = ["byte_words", "changes_of", "scheme_of", "speed_words"]

_FEW = 2
"""So many modules are named; of more, how many there are."""


def scheme_of(trial: Trial) -> str:
    """The scheme of the trial's target."""
    return parse_target(trial.target).scheme


def changes_of(trial: Trial) -> str:
    """The scheme and what is changed of it, as `int8 smoothing=0.5, 3 modules in fp32`."""
    changes = Quantization.model_validate(trial.quantization)
    plain = changes.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"exclude", "layers"})
    knobs = [f"{key}={value}" for key, value in plain.items()]
    layers = {**dict.fromkeys(changes.exclude, "fp32"), **changes.layers}
    mixed = [_layer_words(list(layers), layers, precision) for precision in Counter(layers.values())]
    return f"{scheme_of(trial)} {', '.join([*knobs, *mixed])}".rstrip()


def speed_words(trial: Trial) -> str:
    """How fast beside fp32, with the spread; empty where it was not timed."""
    if trial.ratio is None or trial.ratio_low is None or trial.ratio_high is None:
        return ""
    verdict = "" if trial.ratio_low > 1 else ", slower" if trial.ratio_high < 1 else ", not surely faster"
    return f"{trial.ratio:.2f} times as fast as fp32 ({trial.ratio_low:.2f} to {trial.ratio_high:.2f}{verdict})"


def byte_words(trial: Trial, base: Trial) -> str:
    """The size beside fp32's."""
    from toolkit.console import byte_size

    if trial.bytes is None or base.bytes is None:
        return ""
    return f"{byte_size(trial.bytes)} instead of {byte_size(base.bytes)}"


def _layer_words(names: list[str], layers: dict[str, str], precision: str) -> str:
    own = [name for name in names if layers[name] == precision]
    return f"{', '.join(own) if len(own) <= _FEW else f'{len(own)} modules'} in {precision}"
