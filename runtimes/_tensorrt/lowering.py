"""A quantized graph into what TensorRT's ONNX parser takes: the rules in order, the preflight, the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from runtimes._standard.attention import lower_attention
from runtimes._standard.biases import fold_biases
from runtimes._standard.functions import inline_functions
from runtimes._standard.half import half_elsewhere
from runtimes._standard.signed import sign_quantization
from runtimes._standard.static_cache import static_spec
from runtimes._tensorrt.preflight import check
from runtimes._tensorrt.rules.byte_inputs import cast_byte_inputs
from runtimes._tensorrt.rules.int8_attention import lower_int8_attention
from runtimes._tensorrt.rules.opset import lower_opset
from toolkit.errors import StageError
from toolkit.hashing import data_path
from toolkit.types import DEFAULT_OPTIONS, LoweredGraph, QuantizedGraph, Samples, Step, TargetOptions

__all__ = ["GRAPH_FILE", "lower_graph", "lower_model"]

GRAPH_FILE = "model.onnx"


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

    With a static cache the answer's spec has the graph's own inputs and outputs, which differ from the model's.
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
    static = graph.spec.decoder is not None and options.cache == "static"
    length = graph.spec.dims["total_sequence"].max if static else None
    steps = lower_model(model, samples, options.architectures, cache_length=length, tensorrt10=tensorrt10)
    spec = static_spec(graph.spec, model) if static else graph.spec
    _write(model, path)
    return LoweredGraph(path, spec, (*graph.steps, *steps), graph.scheme, runtime)


def lower_model(
    model: ir.Model,
    samples: Samples | None = None,
    architectures: Sequence[str] = (),
    *,
    cache_length: int | None = None,
    tensorrt10: bool = False,
) -> list[Step]:
    """Rewrite the model in place; with `cache_length` its cache becomes buffers of so many positions.

    Raises UnsupportedError where TensorRT would refuse or misread the result.
    """
    steps = [
        *cast_byte_inputs(model),
        *sign_quantization(model),
        *fold_biases(model),
        # The network that ONNX Runtime hands to TensorRT 10 is weakly typed: its builder chooses half precision.
        *([] if tensorrt10 else half_elsewhere(model, samples)),
        *lower_int8_attention(model),
        *lower_attention(model, cache_length=cache_length, decomposed=tensorrt10),
        *inline_functions(model),
    ]
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    steps += lower_opset(model) if tensorrt10 else []
    return [*steps, *check(model, architectures)]


def _write(model: ir.Model, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(model, path, external_data=data_path(path).name)
    except OSError as error:
        raise StageError("lower", f"cannot write {path}: {error}", hint="Check free space and permissions.") from error
