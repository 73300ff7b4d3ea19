"""ONNX Runtime on an NVIDIA GPU: fused attention in fp32 or fp16, int4 weights; refuses to fall back to the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from runtimes._onnxruntime.decoder import open_decoder
from runtimes._onnxruntime.engine import BUILDER, executed_engine, files_of, graph_file
from runtimes._onnxruntime.session import OrtSession
from runtimes.ort_cuda.device import CUDA, cuda_blocker, cuda_devices
from toolkit.errors import UnsupportedError
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

__all__ = ["KINDS", "RUNTIME", "SCHEMES", "CudaOptions", "OrtCuda"]

SCHEMES = ("fp32", "fp16", "int4")
KINDS = ("encoder", "vision", "decoder", "module")


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """Options of the CUDA provider, by ONNX Runtime's own names.

    `gpu_mem_limit` is in bytes, 0 for none. TF32 is off, so that fp32 means fp32.
    """

    device_id: int = 0
    gpu_mem_limit: int = 0
    use_tf32: bool = False
    arena_extend_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"] = "kSameAsRequested"
    cudnn_conv_algo_search: Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"] = "HEURISTIC"

    def as_strings(self) -> dict[str, str]:
        """What ONNX Runtime takes: every value as text, booleans as 0 and 1, no limit left out."""
        given = {name: str(int(value) if isinstance(value, bool) else value) for name, value in asdict(self).items()}
        return {name: text for name, text in given.items() if (name, text) != ("gpu_mem_limit", "0")}


@dataclass(frozen=True, slots=True)
class OrtCuda:
    """The runtime `ort-cuda`. The engine is the lowered graph, which can be written without a GPU."""

    options: CudaOptions = CudaOptions()

    def readiness(self) -> Readiness:
        """Ready where the build has CUDA, the driver counts a GPU, and a session really starts on it."""
        reason = cuda_blocker()
        device = "" if reason else f"{cuda_devices()} CUDA GPU, device {self.options.device_id}"
        return Readiness(not reason, not reason, f"onnxruntime {ort.__version__}", device, reason)

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
        reason = cuda_blocker()
        if reason:
            return Engine(graph, "graph-only", BUILDER, files_of(graph), reason=reason)
        session = self._open(graph.path)
        try:
            return executed_engine(graph, session)
        finally:
            session.close()

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the engine's graph on the GPU. Raises UnsupportedError with the reason where there is none."""
        return self._session(folder, engine)

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
        """Open a language model on the GPU; its cache goes out and in with each step. Raises as `session` does."""
        return open_decoder(self._session(folder, engine), spec, limit=limit, rows=rows)

    def _session(self, folder: Path, engine: Mapping[str, Any]) -> OrtSession:
        reason = cuda_blocker()
        if reason:
            raise UnsupportedError(f"ort-cuda cannot run here: {reason}", hint="`ort-cpu` runs everywhere.")
        return self._open(graph_file(folder, engine))

    def _open(self, path: Path) -> OrtSession:
        return OrtSession(path, CUDA, provider_options=self.options.as_strings())


RUNTIME = OrtCuda()
