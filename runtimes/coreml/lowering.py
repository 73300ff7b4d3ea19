"""A quantized graph into Core ML's dialect: standard operators that each have a counterpart in an ML Program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from quantize.nodes import lift_constants
from runtimes._standard.biases import fold_biases
from runtimes._standard.functions import inline_functions
from runtimes._standard.half import half_beside_weights
from runtimes._standard.signed import sign_quantization
from runtimes._standard.static_cache import static_spec
from runtimes.coreml.rules.attention import lower_attention
from runtimes.coreml.rules.constants import fold_constants
from toolkit.errors import StageError
from toolkit.hashing import data_path
from toolkit.types import Dim, LoweredGraph, ModelSpec, QuantizedGraph, Samples, Step

__all__ = ["GRAPH_FILE", "lower_graph", "lower_model"]

GRAPH_FILE = "model.onnx"


def lower_graph(graph: QuantizedGraph, folder: Path, samples: Samples | None = None) -> LoweredGraph:
    """Write `model.onnx`, weights beside it, into `folder`.

    A language model's answer has the graph's own inputs and outputs: one row, whose cache is a buffer written in place.
    Raises UnsupportedError for what Core ML has no form of, StageError where the graph cannot be read or written.
    """
    path = folder / GRAPH_FILE
    if path.resolve() == graph.path.resolve():
        raise StageError("lower", f"{path} would overwrite its own source", hint="Lower into another folder.")
    try:
        model = ir.load(graph.path)
    except Exception as error:  # protobuf and onnx_ir share no base class for a bad file
        raise StageError("lower", f"cannot read {graph.path}: {error}", hint="Export the model again.") from error
    length = graph.spec.dims["total_sequence"].max if graph.spec.decoder is not None else None
    steps = lower_model(model, samples if graph.scheme != "fp16" else None, graph.scheme, length)
    spec = graph.spec if length is None else _decoder_spec(graph.spec, model)
    _write(model, path)
    return LoweredGraph(path, spec, (*graph.steps, *steps), graph.scheme, "coreml")


def lower_model(
    model: ir.Model, samples: Samples | None = None, scheme: str = "fp16", cache_length: int | None = None
) -> list[Step]:
    """Rewrite the model in place; what the scheme left in fp32 is decided here, by what `samples` show."""
    lift_constants(model)
    if cache_length is not None:
        CommonSubexpressionEliminationPass()(model)
    steps = [
        *fold_constants(model),
        *sign_quantization(model),
        *fold_biases(model),
        *(half_beside_weights(model, samples, f"{scheme} weights") if scheme != "fp16" else []),
        *lower_attention(model, cache_length),
        *inline_functions(model),
    ]
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    return steps


def _decoder_spec(spec: ModelSpec, model: ir.Model) -> ModelSpec:
    """One row at a time: a state of Core ML has a fixed shape."""
    own = static_spec(spec, model)
    return replace(own, dims={**own.dims, "batch": Dim(1, 1, 1)})


def _write(model: ir.Model, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(model, path, external_data=data_path(path).name)
    except OSError as error:
        raise StageError("lower", f"cannot write {path}: {error}", hint="Check free space and permissions.") from error
