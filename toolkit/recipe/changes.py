"""A scheme's recipe with what the user changed, as `--recipe block-size=64,rounding=awq` or a file says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from toolkit import plugins
from toolkit.errors import UsageError
from toolkit.recipe.document import Precision, Quantization
from toolkit.recipe.runtimes import taken_by
from toolkit.types import CalibrationMethod, QuantConfig, Ranges

__all__ = ["given_keys", "parse_changes", "require_taken", "taken", "tuned"]


def parse_changes(text: str) -> Quantization:
    """What `--recipe` says in line. Several `exclude` patterns are separated by semicolons.

    Raises UsageError for a key that no scheme has, one that is given twice, or a value that is not allowed.
    """
    changes: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if key not in _READ or not separator:
            raise UsageError(f"'{part}' is no part of a recipe", hint=f"{plugins.nearest(key, _READ)}{_ALLOWED}")
        if key in changes:
            raise UsageError(f"'{key}' is given twice in the recipe '{text}'", hint="Give each key once.")
        changes[key] = _READ[key](key, value)
    return Quantization.model_validate(changes)


def given_keys(changes: Quantization) -> tuple[str, ...]:
    """The keys that change something, as the file spells them."""
    return tuple(changes.model_dump(by_alias=True, exclude_defaults=True))


def tuned(changes: Quantization, base: QuantConfig) -> QuantConfig:
    """`base`, a scheme's own recipe, with those of the changes that it has a use for."""
    kept = taken(changes, [base])
    values = {key: getattr(kept, key.replace("-", "_")) for key in given_keys(kept)}
    fields = {key.replace("-", "_"): _VALUES.get(key, lambda value: value)(value) for key, value in values.items()}
    return replace(base, **fields)


def taken(changes: Quantization, recipes: Iterable[QuantConfig]) -> Quantization:
    """Those of the changes that one of the schemes has a use for."""
    bases = list(recipes)
    used = [key for key in given_keys(changes) if any(_takes(base, changes, key) for base in bases)]
    kept = [key.replace("-", "_") for key in used]
    return Quantization(**{name: getattr(changes, name) for name in kept})


def require_taken(changes: Quantization, recipes: Sequence[Mapping[str, QuantConfig]]) -> None:
    """Refuse a change that none of the schemes has a use for; `recipes` are each target's own, by the scheme's name.

    Raises UsageError that names the key and what the schemes can be tuned by.
    """
    bases = [base for each in recipes for base in each.values()]
    for key in given_keys(changes):
        if any(_takes(base, changes, key) for base in bases):
            continue
        if key == "calibration" and any(key in _tunable(base) for base in bases):
            raise UsageError(
                f"'{changes.calibration}' calibration is made for steps of one size, which 8-bit floats do not have",
                hint=f"Allowed here: {', '.join(_FLOAT_METHODS)}.",
            )
        names = ", ".join(f"'{name}'" for name in dict.fromkeys(name for each in recipes for name in each))
        can = dict.fromkeys(key for base in bases for key in _tunable(base))
        has = f"It can be tuned by: {', '.join(can)}." if can else "It cannot be tuned."
        if key == "rounding" and any(_rounds_by_channel(base) for base in bases):
            raise UsageError(
                f"scheme {names} has no '{key}' {changes.rounding} for this model: its weights have a scale a channel",
                hint=f"Allowed here: {', '.join(_CHANNEL_ROUNDING)}.",
            )
        hint = " ".join(filter(None, (has, taken_by(key), "Leave it out here.")))
        raise UsageError(f"scheme {names} has no '{key}' for this model", hint=hint)


def _takes(base: QuantConfig, changes: Quantization, key: str) -> bool:
    """Whether the scheme has a use for the change with the value that it has."""
    if key == "calibration" and base.weights == "float8e4m3fn" and changes.calibration not in _FLOAT_METHODS:
        return False
    if key == "rounding" and _rounds_by_channel(base) and changes.rounding not in _CHANNEL_ROUNDING:
        return False
    if key == "block-size" and changes.embeddings == "int8" and "embeddings" in _tunable(base):
        return True
    return key in _tunable(base)


def _tunable(base: QuantConfig) -> tuple[str, ...]:
    if base.weights == "float4e2m1":
        return ("exclude", "layers")
    if base.granularity == "per-block":
        blocks = ("block-size", "rounding", "symmetric") if base.weights == "int4" else ("block-size",)
        return (*blocks, "exclude", "layers", *_tables(base))
    if base.weights in ("float16", "bfloat16"):
        return ("layers",)
    if base.weights not in ("int8", "float8e4m3fn", "palette4"):
        return ()
    calibrated = ("calibration",) if base.calibration in get_args(CalibrationMethod) else ()
    ranges = ("ranges",) if calibrated and base.activations == "uint8" else ()
    attention = ("attention",) if calibrated and base.weights == "int8" else ()
    smoothing = ("smoothing",) if base.smoothing is not None else ()
    rounding = ("rounding",) if _rounds_by_channel(base) else ()
    return ("exclude", "layers", *calibrated, *ranges, *attention, *smoothing, *rounding, *_tables(base))


def _tables(base: QuantConfig) -> tuple[str, ...]:
    """Tables that are float of themselves can be int8 beside integers."""
    return ("embeddings",) if base.weights in ("int8", "int4") and base.embeddings == "float" else ()


def _rounds_by_channel(base: QuantConfig) -> bool:
    """Whether weights of one scale a channel are rounded by data: where activations are measured anyway."""
    return base.weights == "int8" and base.granularity == "per-channel" and base.calibration != "none"


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        if value not in allowed:
            raise UsageError(f"'{value}' is no {key}", hint=f"Allowed: {', '.join(allowed)}.")
        return value

    return read


def _block_size(key: str, value: str) -> int:
    return int(_one_of("16", "32", "64", "128")(key, value))


def _yes_or_no(key: str, value: str) -> bool:
    return _one_of("yes", "no")(key, value) == "yes"


def _patterns(key: str, value: str) -> tuple[str, ...]:
    patterns = tuple(pattern.strip() for pattern in value.split(";") if pattern.strip())
    if not patterns:
        raise UsageError(f"{key} names no module", hint="Give patterns of module paths, as exclude=*.fc1;*.head.")
    return patterns


def _layers(key: str, value: str) -> dict[str, str]:
    layers: dict[str, str] = {}
    for part in _patterns(key, value):
        pattern, _, precision = (piece.strip() for piece in part.rpartition(":"))
        if not pattern:
            raise UsageError(f"'{part}' gives no precision", hint="Give patterns as layers=*.fc1:int4;*.head:fp32.")
        layers[pattern] = _one_of(*get_args(Precision))(f"precision for '{pattern}'", precision)
    return layers


def _share(key: str, value: str) -> float | str:
    if value in ("search", "off"):
        return value
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"'{value}' is no {key}", hint="Allowed: a number from 0 to 1, search or off.")
    return share


_READ: Mapping[str, Callable[[str, str], Any]] = {
    "block-size": _block_size,
    "rounding": _one_of("nearest", "gptq", "awq", "hqq"),
    "symmetric": _yes_or_no,
    "exclude": _patterns,
    "layers": _layers,
    "smoothing": _share,
    "calibration": _one_of(*get_args(CalibrationMethod)),
    "ranges": _one_of(*get_args(Ranges)),
    "attention": _one_of("float", "int8"),
    "embeddings": _one_of("float", "int8"),
}
_FLOAT_METHODS = ("minmax", "percentile")
_CHANNEL_ROUNDING = ("nearest", "gptq")
_ALLOWED = f"Allowed: {', '.join(_READ)}; as --recipe block-size=64,rounding=awq."
_VALUES: Mapping[str, Callable[[Any], Any]] = {
    "smoothing": lambda value: None if value == "off" else value,
    "layers": lambda value: tuple(value.items()),
}
"""How a value of the file becomes that of the config, where the two differ."""
