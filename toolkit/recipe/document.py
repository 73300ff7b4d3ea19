"""The recipe file's fields: one config, of which the options of `toolkit export` are the other face."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from toolkit.types import CacheForm, CalibrationMethod, Dim, Ranges

__all__ = ["VERSION", "Build", "Data", "DimRange", "Precision", "Quantization", "Recipe"]

VERSION = 1
Precision = Literal["fp32", "fp16", "int8", "int4"]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class _Section(BaseModel):
    """Keys are spelled as the command's options are, with hyphens; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_kebab, populate_by_name=True)


def _dim(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return Dim(value, value, value)
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+):(\d+):(\d+)", value.strip())
        if not match:
            raise ValueError(f"'{value}' is not of the form MIN:OPT:MAX, as 1:8:64")
        return Dim(*map(int, match.groups()))
    return value


def _spell_dim(dim: Dim) -> str | int:
    return dim.min if dim.min == dim.opt == dim.max else f"{dim.min}:{dim.opt}:{dim.max}"


DimRange = Annotated[Dim, BeforeValidator(_dim), PlainSerializer(_spell_dim)]
"""A dimension's range, written `1:8:64` or, where it is fixed, `4`."""


class Data(_Section):
    """Where inputs come from: a folder, a file or `datasets:NAME`, none for the family's own; how many; the seed.

    `seed` is that of the sample where there are more than `count`; `column` names what holds the text or image in a
    JSONL file or a data set, and after a comma the class, as `body,topic`.
    """

    source: str = ""
    count: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    column: str = ""


class Quantization(_Section):
    """What is changed of the schemes' own recipes; None and empty: nothing.

    `layers` gives modules whose path matches a pattern a precision of their own; the first match counts.
    """

    exclude: tuple[str, ...] = ()
    layers: dict[str, Precision] = Field(default_factory=dict)
    calibration: CalibrationMethod | None = None
    smoothing: Annotated[float, Field(ge=0, le=1)] | Literal["search", "off"] | None = None
    ranges: Ranges | None = None
    attention: Literal["float", "int8"] | None = None
    embeddings: Literal["float", "int8"] | None = None
    block_size: Literal[16, 32, 64, 128] | None = None
    rounding: Literal["nearest", "gptq", "awq", "hqq"] | None = None
    symmetric: bool | None = None


class Build(_Section):
    """How engines are compiled; `timeout` in seconds and `memory` in MiB hold for one build."""

    arch: tuple[Annotated[str, Field(pattern=r"^sm\d+$")], ...] = ()
    timeout: Annotated[float, Field(ge=1)] | None = None
    memory: Annotated[int, Field(ge=1)] | None = None
    kv_cache: CacheForm | None = None
    provider_option: dict[str, str] = Field(default_factory=dict)
    require_engine: bool = False


class Recipe(_Section):
    """Everything that an export is made from, but where its bundles go and what only the user's own hand may allow.

    `gate` holds bounds by the keys of `--drift-gate`. Code from a model's repository is not among the fields: that is
    allowed on the command line, never by a file that came from elsewhere.
    """

    version: Literal[1] = 1
    model: str = Field(min_length=1)
    task: str = ""
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    targets: tuple[str, ...] = Field(min_length=1)
    dims: dict[str, DimRange] = Field(default_factory=dict)
    opset: int | None = None
    calibration: Data = Data()
    evaluation: Data | None = None
    quantization: Quantization = Quantization()
    gate: dict[str, float | Literal["off"]] = Field(default_factory=dict)
    build: Build = Build()
    last_logits: bool = False
    allow_unfused: bool = False
