"""ONNX Runtime on Android and iOS: an .ort file of one fixed shape in operators that a phone's providers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Never

import onnxruntime as ort

from runtimes._onnxruntime.engine import BUILDER, zero_inputs
from runtimes._onnxruntime.rows import RowSession
from runtimes._onnxruntime.session import OrtSession
from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import (
    DEFAULT_OPTIONS,
    DecoderSpec,
    Engine,
    LoweredGraph,
    ModelSpec,
    QuantizedGraph,
    Readiness,
    Samples,
    Session,
    TargetOptions,
    TensorSpec,
)

__all__ = ["EMBEDDINGS", "FIXED", "KINDS", "RUNTIME", "SCHEMES", "UNSIGNED", "OrtMobile"]

SCHEMES = ("fp32", "fp16", "int8")
KINDS = ("encoder", "vision", "module")
EMBEDDINGS = ("float", "int8")
UNSIGNED = ("int8",)
FIXED = True
"""Dynamic dimensions have one size, their `opt`, and one row: see `toolkit.plan`."""

_MODEL = "model"
_SUFFIX = ".ort"
_DAMAGED = "The bundle's manifest is damaged; export it again."


class OrtMobile:
    """The runtime `ort-mobile`. The engine is `model.ort`, written here and run here by the same CPU kernels."""

    def readiness(self) -> Readiness:
        """Ready wherever onnxruntime imports: the wheel has the converter."""
        return Readiness(True, True, f"onnxruntime {ort.__version__}", "CPU; phones run the same .ort file")

    def lower(
        self,
        graph: QuantizedGraph,
        folder: Path,
        samples: Samples | None = None,
        options: TargetOptions = DEFAULT_OPTIONS,
    ) -> LoweredGraph:
        """Write `model.onnx` into `folder`: standard operators, one row, each other dimension at its `opt`."""
        from runtimes._onnxruntime.lowering import lower_graph
        from runtimes.ort_mobile.rules import rules_for

        return lower_graph(graph, folder, "ort-mobile", rules_for(graph.spec))

    def build(self, graph: LoweredGraph, options: TargetOptions = DEFAULT_OPTIONS) -> Engine:
        """Write the `.ort` file and its list of operators and run it once on zeros; StageError where that fails."""
        from runtimes.ort_mobile.build import OPERATORS_FILE, ORT_FILE, write_operators, write_ort
        from runtimes.ort_mobile.fixed import fixed_spec
        from runtimes.ort_mobile.usability import usability

        engine = graph.path.with_name(ORT_FILE)
        write_ort(graph.path, engine, graph.scheme)
        write_operators(engine, graph.path.with_name(OPERATORS_FILE))
        found, fixed = usability(graph.path), fixed_spec(graph.spec)
        details = {
            "ran_on": _tried(engine, fixed),
            "bytes": engine.stat().st_size,
            "providers": {name: each.as_json() for name, each in found.items()},
            _MODEL: {"inputs": _plain(graph.spec.inputs), "outputs": _plain(graph.spec.outputs)},
        }
        said = ", ".join(f"{name} knows {each.said}" for name, each in found.items())
        files = (Path(ORT_FILE), Path(OPERATORS_FILE))
        return Engine(
            graph, "executed", BUILDER, files, "", details, f"({said})", inputs=fixed.inputs, outputs=fixed.outputs
        )

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the `.ort` file, fed row by row. Raises StageError where ONNX Runtime refuses it."""
        inputs, outputs = (_specs(engine, word) for word in ("inputs", "outputs"))
        return RowSession(OrtSession(_ort_file(folder, engine)), inputs, outputs)

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Never:
        """Raises UnsupportedError: a cache grows, and an engine of one fixed shape holds none."""
        raise UnsupportedError(
            "ort-mobile runs no language models",
            hint="Export --target ort-cpu-int4: ONNX Runtime for Android and iOS opens that graph as it is.",
        )


def _tried(engine: Path, fixed: ModelSpec) -> str:
    session = OrtSession(engine)
    try:
        session.run(zero_inputs(fixed))
        return session.ran_on
    finally:
        session.close()


def _ort_file(folder: Path, engine: Mapping[str, Any]) -> Path:
    names = [name for name in engine.get("files", ()) if isinstance(name, str) and name.endswith(_SUFFIX)]
    if not names:
        raise UsageError(f"the engine's entry in {folder} names no {_SUFFIX} file", hint=_DAMAGED)
    return folder / names[0]


def _plain(tensors: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [asdict(tensor) for tensor in tensors]


def _specs(engine: Mapping[str, Any], word: str) -> tuple[TensorSpec, ...]:
    """The model's own inputs or outputs, whose named dimensions the `.ort` file no longer has."""
    try:
        stored = engine["details"][_MODEL][word]
        return tuple(TensorSpec(each["name"], each["dtype"], tuple(each["shape"])) for each in stored)
    except (KeyError, TypeError) as error:
        raise UsageError(f"the engine's entry does not tell the model's {word}", hint=_DAMAGED) from error


RUNTIME = OrtMobile()
