"""A quantized graph into what TensorRT's ONNX parser takes: the rules in order, the preflight, the file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from runtimes._tensorrt.preflight import check
from runtimes._tensorrt.rules.attention import lower_attention
from runtimes._tensorrt.rules.half import half_elsewhere
from runtimes._tensorrt.rules.opset import lower_opset
from toolkit.errors import StageError
from toolkit.hashing import data_path, graph_sha256
from toolkit.types import DEFAULT_OPTIONS, LoweredGraph, QuantizedGraph, Samples, Step, TargetOptions

__all__ = ["GRAPH_FILE", "lower_graph", "lower_model"]

GRAPH_FILE = "model.onnx"

_RULES: tuple[Callable[[ir.Model], list[Step]], ...] = (half_elsewhere, lower_attention)
_RULES_OF_10 = (partial(lower_attention, decomposed=True),)


def lower_graph(
    graph: QuantizedGraph,
    folder: Path,
    runtime: str,
    samples: Samples | None = None,
    options: TargetOptions = DEFAULT_OPTIONS,
    *,
    tensorrt10: bool = False,
) -> LoweredGraph:
    """Write `model.onnx`, weights beside it, into `folder`; weights that no rule touches are streamed.

    `tensorrt10` keeps to what TensorRT 10's parser takes from 10.6 on: decomposed attention and opset 22.
    It leaves the precisions as they are, for a network that is weakly typed.
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
    steps = lower_model(model, tensorrt10=tensorrt10)
    _write(model, path)
    return LoweredGraph(path, graph_sha256(path), graph.spec, (*graph.steps, *steps), graph.scheme, runtime)


def lower_model(model: ir.Model, *, tensorrt10: bool = False) -> list[Step]:
    """Rewrite the model in place. Raises UnsupportedError where TensorRT would refuse or misread the result."""
    steps = [step for rule in (_RULES_OF_10 if tensorrt10 else _RULES) for step in rule(model)]
    if model.functions:
        InlinePass()(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    if tensorrt10:
        steps += lower_opset(model)
    check(model)
    return steps


def _write(model: ir.Model, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(model, path, external_data=data_path(path).name)
    except OSError as error:
        raise StageError("lower", f"cannot write {path}: {error}", hint="Check free space and permissions.") from error
