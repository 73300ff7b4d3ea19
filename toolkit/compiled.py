"""What a runtime compiled, one entry a GPU architecture: the facts that a manifest keeps and that people are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from toolkit.types import Decoder, DecoderSpec, Session, TargetOptions

__all__ = [
    "BuiltEngine",
    "ChecksOptions",
    "Interprets",
    "Rebuild",
    "Rebuilds",
    "Rebuilt",
    "built_engines",
    "describe_built",
]


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """One compiled file; its size is in bytes, `seconds` is what compiling took.

    `attentions` of the graph are compiled once for each of `profiles`; `fused_attentions` of them all became single
    kernels. `gemms` counts products with a weight over all profiles, by what they multiply, as `int8`, `half` or
    `half x int4`; queries, keys and values that share one product count once. `int8_attentions` are the fused ones
    that multiply int8. Where the builder does not tell, the last four are None.
    """

    architecture: str
    file: str
    bytes: int
    seconds: float
    attentions: int
    sha256: str = ""
    profiles: int = 1
    fused_attentions: int | None = None
    gemms: Mapping[str, int] | None = None
    kernels: int | None = None
    int8_attentions: int | None = None

    @property
    def int8_products(self) -> int | None:
        """Products whose operands are both int8."""
        return None if self.gemms is None else self.gemms.get("int8", 0)

    @property
    def fused_words(self) -> str:
        """`4 of 4`, over all profiles; `unknown` where the builder does not tell, `-` in a graph without attention."""
        if not self.attentions:
            return "-"
        return "unknown" if self.fused_attentions is None else f"{self.fused_attentions} of {self.whole_attentions}"

    @property
    def whole_attentions(self) -> int:
        """How many fused kernels there could be: one an attention in each profile."""
        return self.attentions * self.profiles

    @property
    def gemm_words(self) -> str:
        """`24 of 25 int8, 1 of 25 half`; `unknown` where the builder does not tell."""
        if self.gemms is None:
            return "unknown"
        whole = sum(self.gemms.values())
        return ", ".join(f"{count} of {whole} {form}" for form, count in self.gemms.items()) or "none"

    def as_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "gemms": None if self.gemms is None else dict(self.gemms)}


_ENTRIES = TypeAdapter(dict[str, BuiltEngine])


def built_engines(details: Mapping[str, Any]) -> tuple[BuiltEngine, ...]:
    """The entries under `engines` of an engine's details; none for a runtime that compiles nothing.

    Fields of other versions of the toolkit are left out; entries of another shape, as a manifest changed by hand may
    hold, are none.
    """
    try:
        return tuple(_ENTRIES.validate_python(details.get("engines", {})).values())
    except ValidationError:
        return ()


def describe_built(engines: Sequence[BuiltEngine]) -> str:
    """`for sm80, sm89: 25 of 25 GEMMs int8, 4 of 4 attentions fused`, architectures of one outcome together."""
    groups: dict[str, list[str]] = {}
    for engine in engines:
        groups.setdefault(_outcome(engine), []).append(engine.architecture)
    return "; ".join(f"for {', '.join(names)}: {outcome}" for outcome, names in groups.items())


def _outcome(engine: BuiltEngine) -> str:
    if engine.gemms is None:
        return "what its GEMMs and attentions run in is unknown"
    whole = sum(engine.gemms.values())
    said = [f"{count} of {whole} GEMMs {form}" for form, count in engine.gemms.items()] or ["no GEMMs"]
    inside = f", {engine.int8_attentions} of them int8" if engine.int8_attentions else ""
    return ", ".join([*said, f"{engine.fused_words} attentions fused{inside}" if engine.attentions else "no attention"])


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """An engine file of a bundle beside the same one built again; hashes are SHA-256 in hex."""

    name: str
    file: str
    locked_sha256: str
    sha256: str
    locked_bytes: int
    bytes: int
    seconds: float

    @property
    def same(self) -> bool:
        """Whether both hold the same bytes."""
        return self.locked_sha256 == self.sha256


@dataclass(frozen=True, slots=True)
class Rebuild:
    """What was built again: by which library and version, from which file of the bundle, and each engine."""

    builder: str
    graph: str
    files: tuple[Rebuilt, ...]


@runtime_checkable
class Rebuilds(Protocol):
    """A runtime whose engines can be built again from a bundle."""

    def rebuild(self, folder: Path, options: TargetOptions = ...) -> Rebuild:
        """Build the engines of the bundle in `folder` again, elsewhere, as they were built, and compare.

        Raises UnsupportedError where the library of that version is not here, or nothing was compiled.
        """
        ...


@runtime_checkable
class Interprets(Protocol):
    """A runtime whose engines can be read back and run without its own library, for what that proves.

    What runs is what was saved, its structure and its weights; `ran_on` says that the runtime's own kernels did not.
    """

    def interpret(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """The engine of a manifest's entry. Raises UnsupportedError that names what is not understood."""
        ...

    def interpret_decoder(
        self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int
    ) -> Decoder:
        """A language model with a cache for `rows` rows of `limit` positions; raises as `interpret` does."""
        ...


@runtime_checkable
class ChecksOptions(Protocol):
    """A runtime that can tell before any work that it will not compile as it is asked to."""

    def check_options(self, options: TargetOptions, scheme: str) -> None:
        """Raise UnsupportedError for what cannot be compiled here, UsageError for what makes no sense; name what does.

        Options that the runtime's `OPTIONS` does not list are for others.
        """
        ...
