"""A quantized graph into what OpenVINO's ONNX front end reads best: standard ONNX, attention written out.

OpenVINO finds attention in the products and the softmax by itself and runs them as one kernel; the front end's own
reading of the standard `Attention` gives the same kernels and fails where queries share keys. Q/DQ become its
integer products as they stand, and what the graph holds in bfloat16 stays bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from exporters.fused_attention import attention_nodes
from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.rules.lookup import look_up_integers
from toolkit.errors import StageError
from toolkit.hashing import data_path
from toolkit.types import LoweredGraph, QuantizedGraph, Step

__all__ = ["ATTENTION", "GRAPH_FILE", "lower_graph"]

GRAPH_FILE = "model.onnx"
ATTENTION = "attention as MatMul and Softmax"
"""What is said of each attention that was written out."""
RUNTIME = "openvino"


def lower_graph(graph: QuantizedGraph, folder: Path) -> LoweredGraph:
    """Put the function's body in the place of every `FusedAttention` and write `model.onnx` into `folder`.

    Weights are streamed from the source's data file. Raises StageError where the graph cannot be read or written.
    """
    path = folder / GRAPH_FILE
    if path.resolve() == graph.path.resolve():
        raise StageError("lower", f"{path} would overwrite its own source", hint="Lower into another folder.")
    try:
        model = ir.load(graph.path)
    except Exception as error:  # protobuf and onnx_ir share no base class for a bad file
        raise StageError("lower", f"cannot read {graph.path}: {error}", hint="Export the model again.") from error
    steps = [*look_up_integers(model, Emitter(model)), *_inline(model)]
    _write(model, path)
    return LoweredGraph(path, graph.spec, (*graph.steps, *steps), graph.scheme, RUNTIME)


def _inline(model: ir.Model) -> list[Step]:
    count = len(attention_nodes(model))
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        function = model.functions.get(node.op_identifier())
        if function is not None:
            # The inliner wants a value for each output, also where the call leaves the last ones out.
            node.resize_outputs(max(len(node.outputs), len(function.outputs)))
    InlinePass()(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    return [Step("lower", ATTENTION, count, "OpenVINO fuses these itself")] if count else []


def _write(model: ir.Model, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(model, path, external_data=data_path(path).name)
    except OSError as error:
        raise StageError("lower", f"cannot write {path}: {error}", hint="Check free space and permissions.") from error
