"""The typed values that travel down the line. All are frozen; a graph is a path, never its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from toolkit.hashing import graph_sha256

if TYPE_CHECKING:
    from toolkit.recipe.document import Data

__all__ = [
    "DEFAULT_OPTIONS",
    "CacheForm",
    "Calibration",
    "CalibrationMethod",
    "Decoder",
    "DecoderSpec",
    "DeviceMemory",
    "Dim",
    "Engine",
    "EngineStatus",
    "Evaluation",
    "ExportedGraph",
    "Family",
    "Fingerprints",
    "Gate",
    "Granularity",
    "Graph",
    "Kind",
    "LoweredGraph",
    "ModelRequest",
    "ModelSpec",
    "OnDevice",
    "PackedWeight",
    "QuantConfig",
    "QuantizedGraph",
    "Ranges",
    "Readiness",
    "Runtime",
    "Samples",
    "Scheme",
    "Session",
    "Step",
    "TargetOptions",
    "TensorSpec",
    "Tensors",
    "WeightOnly",
]

Tensors = Mapping[str, NDArray[Any]]
"""Input or output tensors by name."""

Fingerprints = Callable[[], Sequence[frozenset[bytes]]]
"""For each item of a data set the hashes of what it was made from, worked out when asked for; none: not known."""

Kind = Literal["encoder", "vision", "decoder", "module"]
EngineStatus = Literal["executed", "built", "graph-only"]
Granularity = Literal["per-tensor", "per-channel", "per-block"]
CacheForm = Literal["concat", "static"]
CalibrationMethod = Literal["minmax", "percentile", "entropy", "mse"]
Ranges = Literal["per-tensor", "per-token"]


@dataclass(frozen=True, slots=True)
class Dim:
    """The range of a dynamic dimension: smallest, the one engines are tuned for, largest."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output: a numpy dtype name and a shape whose dynamic dimensions are names, as `batch`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What generation needs to know of a causal language model.

    `context` is the most positions the model was made for; `last_logits` says that the graph answers only the last
    position's logits, [batch, 1, vocabulary]. Cache tensors are `past_key_values.N.key|value` and `present.N.key|value`
    for N below `layers`, shaped [batch, key/value heads, positions, head size].
    """

    layers: int
    vocabulary: int
    context: int
    eos: tuple[int, ...] = ()
    bos: int | None = None
    pad: int | None = None
    last_logits: bool = False


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What `--model` resolved to. Reading it needs a configuration file, never weights.

    `source` is a Hub id, an absolute folder, or `module:factory`. `task` says what the outputs mean:
    `embedding`, `features`, `fill-mask`, `image-classification`, `question-answering`, `semantic-segmentation`,
    `text-classification`, `text-generation`, `token-classification` or `raw`.
    `dims` gives the range of every name used in the shapes of `inputs`.
    """

    name: str
    family: str
    kind: Kind
    task: str
    source: str
    architecture: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: Mapping[str, Dim]
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    seed: int = 0
    labels: tuple[str, ...] = ()
    offline: bool = False
    trust_remote_code: bool = False
    decoder: DecoderSpec | None = None
    """Set for the kind `decoder` only."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What the user asked for, after `--model` was found: `config` is the parsed `config.json` (empty for a factory).

    `name` is what bundles are called; `dims` holds the ranges given with `--dim`, which override the family's; `task`
    is the one given with `--task`, empty for what the checkpoint was saved for.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    seed: int = 0
    dims: Mapping[str, Dim] = field(default_factory=dict)
    offline: bool = False
    trust_remote_code: bool = False
    last_logits: bool = False
    task: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing a stage did: which stage, what, to how many nodes, and why."""

    stage: str
    what: str
    count: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX file on disk (weights beside it in `<name>.data`), its model, and what made it so.

    `steps` is the log of all stages so far.
    """

    path: Path
    spec: ModelSpec
    steps: tuple[Step, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of the graph file and its data file, which are read anew each time this is asked for."""
        return graph_sha256(self.path)


@dataclass(frozen=True, slots=True)
class ExportedGraph(Graph):
    """Canonical ONNX: standard operators and `toolkit::FusedAttention` with its function body."""


@dataclass(frozen=True, slots=True)
class QuantizedGraph(Graph):
    """Canonical ONNX with the scheme's precision written into it: standard Q/DQ, or fp16, or unchanged."""

    scheme: str = "fp32"


@dataclass(frozen=True, slots=True)
class LoweredGraph(Graph):
    """The graph in the runtime's own dialect: no `toolkit` nodes are left, nor functions but those of own kernels."""

    scheme: str = "fp32"
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """What ships. `files` are relative to `graph.path.parent`; for ONNX Runtime the engine is the graph itself.

    `builder` names the library and version that compiled it; `details` holds facts worth keeping
    (architectures, sizes, seconds). `reason` says why the status is not `executed`, `said` in short what was built.
    `inputs` and `outputs` are the engine's own where its shapes are not the model's, as with one fixed shape.
    """

    graph: LoweredGraph
    status: EngineStatus
    builder: str
    files: tuple[Path, ...] = ()
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Gate:
    """The most drift that passes. A bound that is None is not checked.

    The first four hold for every output of a stage; the rest for the task's own metric, where there is one.
    `max_accuracy_drop` is in percentage points; agreement and overlap are fractions of 1.
    """

    min_sqnr_db: float | None = None
    min_cosine: float | None = None
    max_relative_l2: float | None = None
    max_abs: float | None = None
    max_accuracy_drop: float | None = None
    max_perplexity_ratio: float | None = None
    max_kl: float | None = None
    min_top1_agreement: float | None = None
    min_overlap_at_10: float | None = None


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """A scheme's recipe. `weights` and `activations` are dtype names, None where they stay as they are.

    Granularity by shapes, for a Linear weight [K, N]: per-tensor gives one scale [], per-channel gives [N].
    """

    weights: str | None
    activations: str | None
    gate: Gate
    granularity: Granularity = "per-channel"
    symmetric: bool = True
    calibration: CalibrationMethod | Literal["none", "hessian"] = "none"
    exclude: tuple[str, ...] = ()
    smoothing: float | Literal["search"] | None = None
    """SmoothQuant's alpha, 0 to 1: how much of the activations' outliers moves into the weights; the best of each
    activation by `search`; or None."""
    block_size: int | None = None
    """How many weights along K share a scale, where the granularity is per-block."""
    rounding: Literal["nearest", "gptq", "awq", "hqq"] = "nearest"
    ranges: Ranges = "per-tensor"
    """What has a scale among quantized activations: a whole tensor, calibrated, or each token's vector as it comes."""
    attention: Literal["float", "int8"] = "float"
    """Whether queries, keys and values are quantized too, where activations are."""
    embeddings: Literal["float", "int8"] = "float"
    """What embedding tables are stored as; a language model's are int8 wherever its weights are in blocks."""
    layers: tuple[tuple[str, str], ...] = ()
    """Patterns of module paths, each with the precision of its Linears: fp32, fp16, int8 or int4.

    The first match counts; `exclude` comes before them all.
    """
    others: Mapping[str, QuantConfig] = field(default_factory=dict)
    """How the schemes that `layers` name beside this one are applied, by their names."""
    convolutions: bool = True
    """Whether an 8-bit scheme takes the patch convolution that `layers` does not name."""

    @property
    def measured_by(self) -> str:
        """How this recipe and those of its layers take calibration data, as `minmax`; empty where none needs any."""
        methods = dict.fromkeys(each.calibration for each in (self, *self.others.values()))
        return ", ".join(method for method in methods if method != "none")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A stream of realistic inputs. `batches` starts it anew at each call; nothing is held in memory.

    `source` says where the data came from; `sha256` is the hash of the tensors in order. Where `count` samples were
    drawn of a larger set, `total` is its size, as far as it was read, and `seed` that of the draw.
    """

    batches: Callable[[], Iterator[Tensors]]
    count: int
    source: str
    sha256: str = ""
    total: int | None = None
    seed: int | None = None
    items: Fingerprints = tuple


Samples = Callable[[], Calibration]
"""Gives the calibration data to whoever measures on it; it is not read before it is asked for."""


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """How the user wants an engine compiled. A runtime's `OPTIONS` says which of these it takes.

    `architectures` are as `sm89`, none for the runtime's own choice; `seconds` and `memory` (bytes, None for nearly all
    of the machine's) are what one build may take; `cache` is the form of a language model's cache: `concat` appends to
    it, `static` writes new positions into a buffer of full length in place; `provider` holds options of ONNX Runtime's
    execution providers by its own names, as text.
    """

    architectures: tuple[str, ...] = ()
    seconds: float = 3600.0
    memory: int | None = None
    cache: CacheForm = "concat"
    provider: Mapping[str, str] = field(default_factory=dict)


DEFAULT_OPTIONS = TargetOptions()


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A Linear or embedding weight [N, K] as a file packed it: w[n, k] = scale · codes + offset, by blocks along K.

    `codes` reads them, uint8 [N, K] below 2**bits; `scale` and `offset` read float32 [N, K / block_size].
    Each call reads from the file anew: nothing is held.
    """

    bits: Literal[4, 8]
    block_size: int
    shape: tuple[int, int]
    codes: Callable[[], NDArray[np.uint8]]
    scale: Callable[[], NDArray[np.float32]]
    offset: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out inputs that a task metric is computed on.

    `metric` is `accuracy` (of `labels`, int64 [n], the class of each row over all batches; without them only the
    top-1 agreement with the reference, of each token or pixel where those have classes) or `retrieval` (neighbours of
    each row among all rows, compared with the reference's), or `language` (perplexity of the text in `input_ids`, KL
    divergence and top-1 agreement of every position's `logits` with the reference's). The rest is as in `Calibration`;
    `sha256` covers the labels too.
    """

    metric: Literal["accuracy", "retrieval", "language"]
    batches: tuple[Tensors, ...]
    labels: NDArray[np.int64] | None = None
    count: int = 0
    source: str = ""
    sha256: str = ""
    total: int | None = None
    seed: int | None = None
    items: Fingerprints = tuple


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a runtime can do on this machine: `build`, `run`, and the reason where it cannot."""

    build: bool
    run: bool
    version: str = ""
    device: str = ""
    reason: str = ""


class Session(Protocol):
    """Something that runs: a graph on ONNX Runtime, an engine on a GPU, or the PyTorch reference."""

    ran_on: str
    """Library and device, as `onnxruntime 1.32.0 CPUExecutionProvider`; never what was merely asked for."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name. Raises UsageError on a missing input, a wrong dtype or rank."""
        ...

    def close(self) -> None:
        """Free what the session holds."""
        ...


class Decoder(Protocol):
    """A language model with its cache, as generation drives it. Rows are right-padded; each has its own length.

    `limit` is how many positions the cache holds, `rows` the most rows that it holds.
    """

    ran_on: str
    limit: int
    rows: int

    def start(self, rows: int) -> None:
        """Begin anew with an empty cache for so many rows."""
        ...

    def forward(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], *, every: bool = False
    ) -> NDArray[np.float32]:
        """Append `tokens` [rows, S], of which row r's first `lengths[r]` are real (at least 1), and answer logits.

        Answers [rows, vocabulary], after each row's last real token; with `every` all positions, [rows, S, vocabulary].
        Raises UsageError where the cache would pass its limit, or for `every` on a graph with last logits only.
        """
        ...

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions of every row; rows must be equally long."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a device's own memory: all that a session took, and of that the context and the tensors.

    `total` is the fall of the device's free memory, weights and kernels among it; what other processes did meanwhile
    is in it too. `context` is what the engine needs for activations, `buffers` are inputs, outputs and cache.
    """

    total: int
    context: int
    buffers: int


@runtime_checkable
class OnDevice(Protocol):
    """What a session or decoder also is where its work lies in a device's own memory."""

    def device_memory(self) -> DeviceMemory:
        """What is held there now."""
        ...


class Family(Protocol):
    """A model family: one file in `model_zoo/`, exposing an instance as `FAMILY`.

    The file also holds two literals that listing reads without importing it: `NAMES` (short name to Hub id)
    and `MODEL_TYPES` (the `model_type` values of `config.json` that it claims).
    """

    def describe(self, request: ModelRequest) -> ModelSpec:
        """Read the configuration and answer the spec; touches no weights."""
        ...

    def load(self, spec: ModelSpec) -> Any:
        """The fp32 eval-mode `torch.nn.Module` whose keyword arguments are `spec.inputs`.

        Its forward returns a dict from output name to tensor.
        """
        ...

    def golden(self, spec: ModelSpec) -> tuple[Tensors, ...]:
        """A few realistic inputs, the same each time; the bundle carries them."""
        ...

    def calibration(self, spec: ModelSpec, data: Data = ...) -> Calibration:
        """Inputs to calibrate on: the user's, or where `data` has no source the family's own sample data."""
        ...

    def evaluation(self, spec: ModelSpec, data: Data = ...) -> Evaluation | None:
        """Held-out inputs of the task: the user's, or the family's own, or None where it has none.

        Raises UsageError where the user gave some and no metric can be computed on what this model answers.
        """
        ...

    def assets(self, spec: ModelSpec) -> tuple[Path, ...]:
        """Files that the app needs beside the engine: tokenizer, image processor, configuration."""
        ...


class Scheme(Protocol):
    """A quantization recipe: one file in `quantize/schemes/`, exposing an instance as `SCHEME`."""

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """How this model is quantized: a decoder's weights only, where an encoder's activations are too."""
        ...

    def apply(
        self,
        model: Any,
        spec: ModelSpec,
        calibration: Calibration | None,
        packed: Mapping[str, PackedWeight],
        recipe: QuantConfig | None = None,
    ) -> list[Step]:
        """Rewrite the `onnx_ir.Model` in place and say what was done.

        `packed` holds weights that the source had quantized already, by the name of their initializer. `recipe` is
        the scheme's own with what the user changed.
        """
        ...


@runtime_checkable
class WeightOnly(Protocol):
    """What a scheme also is that quantizes activations, and whose weights can be had without."""

    def weight_only(self, spec: ModelSpec) -> QuantConfig:
        """How this model is quantized where activations stay as they are; held to a gate of its own."""
        ...


class Runtime(Protocol):
    """A runtime: one folder in `runtimes/`, exposing an instance as `RUNTIME`.

    Its `__init__.py` also holds literals that listing reads without importing it: `SCHEMES`, `KINDS`, and `OPTIONS`,
    the options of `toolkit export` that it takes, as `arch`. `SCHEME_KINDS` gives the kinds of a scheme that it takes
    for some only, `WEIGHT_ONLY` the schemes of which it runs the weights, but no quantized activations, `UNSIGNED`
    those whose activations it takes as uint8 with a zero point too, `EMBEDDINGS` what an embedding table can be stored
    as, where that is not float alone, `RANGES` what shares a scale among activations, where that is not a tensor alone.
    """

    def readiness(self) -> Readiness:
        """What works here, found out by trying, not by reading version numbers."""
        ...

    def lower(
        self, graph: QuantizedGraph, folder: Path, samples: Samples | None = None, options: TargetOptions = ...
    ) -> LoweredGraph:
        """Write the graph in this runtime's dialect into `folder`.

        A runtime that decides precision by what tensors really hold asks `samples` for the data to measure on.
        """
        ...

    def build(self, graph: LoweredGraph, options: TargetOptions = ...) -> Engine:
        """Compile the lowered graph beside itself, or say honestly that it cannot be done here."""
        ...

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open what was built. `engine` is the manifest's engine entry; raises UnsupportedError with the reason."""
        ...

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
        """Open a language model with a cache for `rows` rows of `limit` positions; raises as `session` does."""
        ...
