"""Core ML on Apple's devices: ML Programs with attention as one operator, caches as states, weights compressed."""

from __future__ import annotations

import importlib.util
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import MissingDependencyError, UnsupportedError
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

__all__ = ["KINDS", "RUNTIME", "SCHEMES", "WEIGHT_ONLY", "CoreML"]

SCHEMES = ("fp16", "int8", "int4", "palettized")
KINDS = ("encoder", "vision", "decoder", "module")
WEIGHT_ONLY = ("int8",)
"""Schemes that quantize no activations here: Core ML computes in half precision, whatever weights are stored in."""

_INSTALL = "pip install '.[coreml]'"
_ELSEWHERE = "Core ML runs on Apple devices only"


class CoreML:
    """The runtime `coreml`. It builds wherever coremltools is installed and runs on macOS."""

    def readiness(self) -> Readiness:
        """Builds where coremltools imports; runs where Apple's framework is."""
        version, why = _coremltools()
        if not version:
            return Readiness(False, False, reason=why)
        on_mac = platform.system() == "Darwin"
        return Readiness(True, on_mac, version, "Core ML" if on_mac else "", "" if on_mac else _ELSEWHERE)

    def lower(
        self,
        graph: QuantizedGraph,
        folder: Path,
        samples: Samples | None = None,
        options: TargetOptions = DEFAULT_OPTIONS,
    ) -> LoweredGraph:
        """Write the graph that the ML Program is made of, in standard ONNX; see `runtimes.coreml.lowering`."""
        from runtimes.coreml.lowering import lower_graph

        return lower_graph(graph, folder, samples)

    def build(self, graph: LoweredGraph, options: TargetOptions = DEFAULT_OPTIONS) -> Engine:
        """Write the package beside the graph. Raises MissingDependencyError without coremltools, else as the build."""
        version, why = _coremltools()
        if not version:
            raise MissingDependencyError(f"a Core ML package needs coremltools: {why}", hint=_INSTALL)
        from runtimes.coreml.engine import build_engine

        return build_engine(graph)

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the package with Core ML itself. Raises UnsupportedError where that is not."""
        raise UnsupportedError(f"{_ELSEWHERE}; this is {platform.system()}")

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
        """Open a language model with its states; raises as `session` does."""
        raise UnsupportedError(f"{_ELSEWHERE}; this is {platform.system()}")


def _coremltools() -> tuple[str, str]:
    """Its version, or why it does not import; found out by importing it."""
    if importlib.util.find_spec("coremltools") is None:
        return "", "coremltools is not installed"
    # It warns at each import that there is no Core ML framework outside macOS, which readiness says itself.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        import coremltools
    except Exception as error:  # a broken installation raises anything
        return "", f"coremltools does not import: {error}"
    return f"coremltools {coremltools.__version__}", ""


RUNTIME = CoreML()
"""What the plug-in discovery finds."""
