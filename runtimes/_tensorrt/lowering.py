"""A quantized graph into what TensorRT's ONNX parser takes: the rules in order, the preflight, the file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from runtimes._tensorrt.preflight import check
from runtimes._tensorrt.rules.attention import lower_attention
from runtimes._tensorrt.rules.half import half_elsewhere
from runtimes._tensorrt.rules.int8_attention import lower_int8_attention
from toolkit.errors import StageError
from toolkit.hashing import data_path, graph_sha256
from toolkit.types import DEFAULT_OPTIONS, LoweredGraph, QuantizedGraph, Samples, Step, TargetOptions

__all__ = ["GRAPH_FILE", "lower_graph", "lower_model"]

GRAPH_FILE = "model.onnx"


def lower_graph(
    graph: QuantizedGraph,
    folder: Path,
    runtime: str,
    samples: Samples | None = None,
    options: TargetOptions = DEFAULT_OPTIONS,
) -> LoweredGraph:
    """Write `model.onnx`, weights beside it, into `folder`; weights that no rule touches are streamed.

    Raises UnsupportedError that names nodes which TensorRT would refuse or misread, StageError where the graph
    cannot be read or written.
    """
    path = folder / GRAPH_FILE
    if path.resolve() == graph.path.resolve():
        raise StageError("lower", f"{path} would overwrite its own source", hint="Lower into another folder.")
    try:
        model = ir.load(graph.path)
    except Exception as error:  # protobuf and onnx_ir share no base class for a bad file
        raise StageError("lower", f"cannot read {graph.path}: {error}", hint="Export the model again.") from error
    steps = lower_model(model, samples)
    _write(model, path)
    return LoweredGraph(path, graph_sha256(path), graph.spec, (*graph.steps, *steps), graph.scheme, runtime)


def lower_model(model: ir.Model, samples: Samples | None = None) -> list[Step]:
    """Rewrite the model in place. Raises UnsupportedError where TensorRT would refuse or misread the result."""
    steps = [*half_elsewhere(model, samples), *lower_int8_attention(model), *lower_attention(model)]
    if model.functions:
        InlinePass()(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    check(model)
    return steps


def _write(model: ir.Model, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(model, path, external_data=data_path(path).name)
    except OSError as error:
        raise StageError("lower", f"cannot write {path}: {error}", hint="Check free space and permissions.") from error
