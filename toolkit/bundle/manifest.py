"""`manifest.json`: what a bundle holds and how it was made."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, JsonValue, model_validator

from toolkit.document import Frozen, read_document
from toolkit.drift.report import FiniteGate, Worst
from toolkit.overlap import Overlap
from toolkit.types import DecoderSpec, Dim, EngineStatus, Gate, Kind, ModelSpec, Step, TensorSpec

__all__ = [
    "CHECK",
    "MANIFEST",
    "SCHEMA_VERSION",
    "CalibrationEntry",
    "DriftEntry",
    "EngineEntry",
    "EvaluationEntry",
    "FileEntry",
    "Manifest",
    "ModelEntry",
    "ProcessingEntry",
    "RelativePath",
    "TargetEntry",
    "read_manifest",
    "relative_path",
]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CHECK = "check"
"""The stage that `toolkit check` measures, and the name of its gate in `gates`."""


def relative_path(text: str) -> str:
    """`text` itself, if it is a relative POSIX path that stays inside. Raises ValueError otherwise."""
    parts = text.split("/")
    odd = any(part in ("", ".", "..") for part in parts)
    if odd or "\\" in text or "\0" in text or ":" in parts[0] or PurePosixPath(text).is_absolute():
        raise ValueError(f"'{text}' is not a relative path inside the bundle")
    return text


RelativePath = Annotated[str, AfterValidator(relative_path)]


class ModelEntry(Frozen):
    """The model as it was resolved; `source` is a Hub id, a folder or `module:factory`."""

    name: str
    source: str
    revision: str | None
    family: str
    kind: Kind
    task: str
    architecture: str
    weights: Literal["pretrained", "random"]
    seed: int
    labels: tuple[str, ...]
    decoder: DecoderSpec | None = None


class TargetEntry(Frozen):
    """Runtime and scheme, as `trt` and `int8`."""

    runtime: str
    scheme: str


class FileEntry(Frozen):
    """A file's SHA-256 in hex and its size in bytes."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class EngineEntry(Frozen):
    """What was compiled, by what, and whether it has run; see `toolkit.types.Engine`.

    `inputs` and `outputs` are the engine's own where they differ from the model's. One fixed shape has numbers there:
    it is fed as docs/selftest.md says. With a cache of fixed length each `past_key_values` and its `present` are one
    buffer, bound to one address, and `write_indices` says where in it each row's new tokens go.
    """

    status: EngineStatus
    builder: str
    files: tuple[RelativePath, ...] = ()
    reason: str = ""
    details: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class ProcessingEntry(Frozen):
    """The graph before or after the model, see `toolkit.processing.Processing`; none where `reason` says why.

    Its samples lie in `preprocess_data_set_N` or `postprocess_data_set_N`; the dtype of texts is `string`.
    """

    graph: RelativePath | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    exact: bool = False
    bound: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    compared: str = ""
    reason: str = ""
    needs: tuple[str, ...] = ()


class DriftEntry(Frozen):
    """The drift report in short: each stage's worst output and task metric. The whole is in `drift.json`."""

    passed: bool
    worst: dict[str, Worst]


class CalibrationEntry(Frozen):
    """What the activations' ranges were taken from: `count` samples, `sha256` of their tensors in order.

    Of the user's own data, drawn with `seed` from `total` samples.
    """

    source: str
    count: int
    method: str
    sha256: str = ""
    total: int | None = None
    seed: int | None = None


class EvaluationEntry(Frozen):
    """What stages were judged on, as a calibration's entry says it; `sha256` covers the classes too."""

    metric: Literal["accuracy", "retrieval", "language"]
    source: str
    count: int
    labelled: bool
    sha256: str
    total: int | None = None
    seed: int | None = None


class Manifest(Frozen):
    """Everything about a bundle but its bytes. Paths are relative to the bundle's folder, in POSIX form.

    `gates` holds each stage's gate, and under `check` the one that a later `toolkit check` applies. `overlap` counts
    the evaluation samples that are calibration samples too; None where nothing was calibrated, or samples are not
    known.
    """

    schema_version: Literal[1] = 1
    toolkit: str
    created: AwareDatetime
    command: str
    model: ModelEntry
    target: TargetEntry
    dims: dict[str, Dim]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    graph: RelativePath
    engine: EngineEntry
    steps: tuple[Step, ...]
    drift: DriftEntry
    gates: dict[str, FiniteGate]
    evaluation: Literal["accuracy", "retrieval", "language"] | None = None
    calibration: CalibrationEntry | None = None
    evaluation_data: EvaluationEntry | None = None
    overlap: Overlap | None = None
    preprocess: ProcessingEntry | None = None
    """None in bundles from before there were such graphs, as is `postprocess`."""
    postprocess: ProcessingEntry | None = None
    allow_unfused: tuple[str, ...] = ()
    canonical: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Operators of the graph as it was exported, by domain; empty in bundles from before they were recorded."""
    libraries: dict[str, str]
    files: dict[RelativePath, FileEntry]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        beside = [entry.graph for entry in (self.preprocess, self.postprocess) if entry and entry.graph]
        unlisted = [path for path in (self.graph, *self.engine.files, *beside) if path not in self.files]
        if unlisted:
            raise ValueError(f"not listed in files: {', '.join(unlisted)}")
        if MANIFEST in self.files:
            raise ValueError("the manifest cannot list itself")
        if CHECK not in self.gates:
            raise ValueError(f"gates must hold '{CHECK}'")
        return self

    @property
    def check_gate(self) -> Gate:
        """The gate that the bundle must keep for good."""
        return self.gates[CHECK]

    def spec(self) -> ModelSpec:
        """The spec of the model, as the line had it."""
        model = {name: getattr(self.model, name) for name in ModelEntry.model_fields}
        return ModelSpec(**model, inputs=self.inputs, outputs=self.outputs, dims=dict(self.dims))

    def engine_mapping(self) -> dict[str, Any]:
        """The engine's entry as plain JSON types, with `graph` added: what `Runtime.session` opens."""
        return {**self.engine.model_dump(mode="json"), "graph": self.graph}


def read_manifest(path: Path) -> Manifest:
    """Read and check `manifest.json`.

    Raises UsageError for broken JSON, a newer schema, unknown or missing fields, a path leading out.
    """
    return read_document(path, Manifest, SCHEMA_VERSION, "manifest")
