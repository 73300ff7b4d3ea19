"""ONNX Runtime on an NVIDIA GPU: fused attention in fp32, fp16 or bf16, int4 or int8 weights; no fall-back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtimes._onnxruntime.cuda_options import CudaOptions
from runtimes._onnxruntime.decoder import open_decoder
from runtimes._onnxruntime.engine import graph_file
from runtimes._onnxruntime.gpu import CUDA
from runtimes._onnxruntime.gpu_engine import OPTIONS_ENTRY, build_on_gpu, readiness_of, recorded, refuse_without
from runtimes._onnxruntime.provider_options import named
from runtimes._onnxruntime.session import OrtSession
from toolkit.types import (
    DEFAULT_OPTIONS,
    Decoder,
    DecoderSpec,
    Engine,
    LoweredGraph,
    QuantizedGraph,
    Readiness,
    Samples,
    Session,
    TargetOptions,
)

__all__ = ["EMBEDDINGS", "KINDS", "OPTIONS", "RUNTIME", "SCHEMES", "SCHEME_KINDS", "CudaOptions", "OrtCuda"]

SCHEMES = ("fp32", "fp16", "bf16", "int8", "int4")
KINDS = ("encoder", "vision", "decoder", "module")
EMBEDDINGS = ("float", "int8")
OPTIONS = ("provider-option",)
SCHEME_KINDS = {"int8": ("decoder",)}
"""A language model's int8 is in its weights, which `MatMulNBits` reads. CUDA has no kernel for a Linear between
Q and DQ: it would be dequantized and run in fp32, slower than fp16."""


@dataclass(frozen=True, slots=True)
class OrtCuda:
    """The runtime `ort-cuda`. The engine is the lowered graph, which can be written without a GPU."""

    options: CudaOptions = field(default_factory=CudaOptions)

    def readiness(self) -> Readiness:
        """Ready where the build has CUDA, the driver counts a GPU, and a session really starts on it."""
        return readiness_of(CUDA, self.options.device_id)

    def check_options(self, options: TargetOptions, scheme: str) -> None:
        """Raise UsageError for a provider option that CUDA does not have, or a value that it does not take."""
        self._given(options)

    def lower(
        self,
        graph: QuantizedGraph,
        folder: Path,
        samples: Samples | None = None,
        options: TargetOptions = DEFAULT_OPTIONS,
    ) -> LoweredGraph:
        """Write `model.onnx` into `folder`; needs no GPU."""
        from runtimes._onnxruntime.lowering import lower_graph
        from runtimes.ort_cuda.rules import RULES

        return lower_graph(graph, folder, "ort-cuda", RULES)

    def build(self, graph: LoweredGraph, options: TargetOptions = DEFAULT_OPTIONS) -> Engine:
        """Open and run the graph on the GPU; without one the engine is `graph-only` and carries the reason."""
        chosen = self._given(options)
        details = {OPTIONS_ENTRY: {CUDA: chosen.as_strings()}}
        return build_on_gpu(graph, CUDA, details, lambda: self._open(graph.path, chosen))

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the engine's graph on the GPU. Raises UnsupportedError with the reason where there is none."""
        return self._session(folder, engine)

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
        """Open a language model on the GPU; its cache goes out and in with each step. Raises as `session` does."""
        return open_decoder(self._session(folder, engine), spec, limit=limit, rows=rows)

    def _given(self, options: TargetOptions) -> CudaOptions:
        with named("ort-cuda"):
            return self.options.changed(options.provider)

    def _session(self, folder: Path, engine: Mapping[str, Any]) -> OrtSession:
        options = recorded(CudaOptions, engine, self.options)
        refuse_without(CUDA, "ort-cuda")
        return self._open(graph_file(folder, engine), options)

    def _open(self, path: Path, options: CudaOptions) -> OrtSession:
        return OrtSession(path, [(CUDA, options.as_strings())])


RUNTIME = OrtCuda()
