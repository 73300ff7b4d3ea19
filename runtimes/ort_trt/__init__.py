"""ONNX Runtime's TensorRT provider (TensorRT 10): compiles on the GPU when opened; refuses to fall back to the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Never

from runtimes._onnxruntime.cuda_options import CudaOptions
from runtimes._onnxruntime.engine import graph_file
from runtimes._onnxruntime.gpu import CUDA, TENSORRT
from runtimes._onnxruntime.gpu_engine import OPTIONS_ENTRY, build_on_gpu, readiness_of, recorded, refuse_without
from runtimes._onnxruntime.provider_options import named, shared_out
from runtimes._onnxruntime.session import OrtSession
from runtimes.ort_trt.options import TensorrtOptions, for_graph, with_cache, without_paths
from runtimes.ort_trt.precision import flags_of, refuse_mixed
from toolkit.errors import UnsupportedError
from toolkit.hashing import graph_sha256
from toolkit.types import (
    DEFAULT_OPTIONS,
    DecoderSpec,
    Engine,
    LoweredGraph,
    QuantizedGraph,
    Readiness,
    Samples,
    Session,
    TargetOptions,
)

__all__ = ["KINDS", "OPTIONS", "RUNTIME", "SCHEMES", "CudaOptions", "OrtTrt", "TensorrtOptions"]

SCHEMES = ("fp32", "fp16", "bf16", "int8")
KINDS = ("encoder", "vision", "module")
OPTIONS = ("provider-option",)

_SCHEME = "scheme"


@dataclass(frozen=True, slots=True)
class OrtTrt:
    """The runtime `ort-trt`. The engine is the lowered graph; TensorRT compiles it when a session opens, and caches.

    Nodes that TensorRT leaves go to CUDA, as the engine's `placement` tells; one that CUDA leaves too is an error.
    """

    options: TensorrtOptions = field(default_factory=TensorrtOptions)
    cuda: CudaOptions = field(default_factory=CudaOptions)

    def readiness(self) -> Readiness:
        """Ready where the build has the provider, the driver counts a GPU, TensorRT 10 loads and a session starts."""
        return readiness_of(TENSORRT, self.options.device_id)

    def check_options(self, options: TargetOptions, scheme: str) -> None:
        """Raise UsageError for a provider option that TensorRT and CUDA lack, or a value that they do not take."""
        self._given(options)

    def lower(
        self,
        graph: QuantizedGraph,
        folder: Path,
        samples: Samples | None = None,
        options: TargetOptions = DEFAULT_OPTIONS,
    ) -> LoweredGraph:
        """Write `model.onnx` into `folder` in the operators of TensorRT 10's parser; needs no GPU.

        Raises UnsupportedError that names the nodes it would refuse or misread, or need not keep in fp32.
        """
        refuse_mixed(graph)
        from runtimes._tensorrt.lowering import lower_graph

        # Architectures and the cache's form are options of other runtimes: one export may have several targets.
        return lower_graph(graph, folder, "ort-trt", samples, tensorrt10=True)

    def build(self, graph: LoweredGraph, options: TargetOptions = DEFAULT_OPTIONS) -> Engine:
        """Open and run the graph on the GPU; without one the engine is `graph-only` and carries the reason."""
        asked, cuda = self._given(options)
        given = for_graph(asked, graph.spec)
        details = {
            OPTIONS_ENTRY: {TENSORRT: without_paths(given).as_strings(), CUDA: cuda.as_strings()},
            _SCHEME: graph.scheme,
        }
        return build_on_gpu(graph, TENSORRT, details, lambda: _open(graph.path, given, cuda, graph.scheme))

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the engine's graph on the GPU, which compiles it unless it is cached.

        Raises UnsupportedError with the reason where there is no GPU or no TensorRT 10, StageError where the graph
        is refused or some of it would run on the CPU.
        """
        options, cuda = recorded(TensorrtOptions, engine, self.options), recorded(CudaOptions, engine, self.cuda)
        scheme = engine.get("details", {}).get(_SCHEME, "")
        flags_of(scheme)
        refuse_without(TENSORRT, "ort-trt")
        return _open(graph_file(folder, engine), without_paths(options), cuda, scheme)

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Never:
        """Raises UnsupportedError: a session has one profile, and a cache wants one for each way of use."""
        raise UnsupportedError("ort-trt runs no language models", hint="`trt` and `ort-cuda` do.")

    def _given(self, options: TargetOptions) -> tuple[TensorrtOptions, CudaOptions]:
        """The options of TensorRT and of CUDA behind it; what both know is TensorRT's, which the device follows."""
        with named("ort-trt"):
            first, behind = shared_out(options.provider, TensorrtOptions, CudaOptions)
            return self.options.changed(first), self.cuda.changed(behind)


def _open(path: Path, options: TensorrtOptions, cuda: CudaOptions, scheme: str) -> OrtSession:
    # Of the file itself: a forged hash would put its engine where that of another graph is looked for.
    cached = with_cache(options, graph_sha256(path)) if path.is_file() else options
    first = {**cached.as_strings(), **flags_of(scheme)}
    behind = replace(cuda, device_id=options.device_id)
    return OrtSession(path, [(TENSORRT, first), (CUDA, behind.as_strings())], strict=True)


RUNTIME = OrtTrt()
