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

__all__ = ["EMBEDDINGS", "KINDS", "RUNTIME", "SCHEMES", "WEIGHT_ONLY", "CoreML"]

SCHEMES = ("fp16", "int8", "int4", "palettized")
KINDS = ("encoder", "vision", "decoder", "module")
EMBEDDINGS = ("float", "int8")
WEIGHT_ONLY = ("int8",)
"""Schemes that quantize no activations here: Core ML computes in half precision, whatever weights are stored in."""

_INSTALL = "pip install 'transformer-export-toolkit[coreml]'"
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
        _require_coremltools()
        from runtimes.coreml.carried import with_swift
        from runtimes.coreml.engine import build_engine

        return with_swift(build_engine(graph))

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the package with Core ML itself. Raises UnsupportedError where that is not."""
        _require_mac()
        from runtimes.coreml.model import Native, package_of
        from runtimes.coreml.session import open_session

        return open_session(Native(package_of(folder, engine)), engine)

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
        """Open a language model with its states; raises as `session` does."""
        _require_mac()
        from runtimes.coreml.model import Native, package_of
        from runtimes.coreml.session import CoreMLDecoder, inputs_of

        return CoreMLDecoder(Native(package_of(folder, engine)), inputs_of(engine), spec, limit=limit, rows=rows)

    def interpret(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """The saved package, read back and run in torch; see `runtimes.coreml.interpreter` for what that proves.

        Raises UnsupportedError that names an operator which is not understood, StageError for a broken package,
        MissingDependencyError without coremltools, whose format it is.
        """
        _require_coremltools()
        from runtimes.coreml.model import Interpreted, package_of
        from runtimes.coreml.session import open_session

        return open_session(Interpreted(package_of(folder, engine)), engine)

    def interpret_decoder(
        self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int
    ) -> Decoder:
        """A language model's package with its states; raises as `interpret` does."""
        _require_coremltools()
        from runtimes.coreml.model import Interpreted, package_of
        from runtimes.coreml.session import CoreMLDecoder, inputs_of

        return CoreMLDecoder(Interpreted(package_of(folder, engine)), inputs_of(engine), spec, limit=limit, rows=rows)


def _require_mac() -> None:
    if platform.system() != "Darwin":
        raise UnsupportedError(
            f"{_ELSEWHERE}; this is {platform.system()}", hint="The bundle's selftest.swift runs it on a device."
        )


def _require_coremltools() -> None:
    version, why = _coremltools()
    if not version:
        raise MissingDependencyError(f"a Core ML package needs coremltools: {why}", hint=_INSTALL)


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
