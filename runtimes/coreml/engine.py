"""The lowered graph built into a Core ML package beside it, and what the engine's entry says of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from quantize.nodes import module_path
from runtimes.coreml.names import coreml_name
from runtimes.coreml.translate.mil import TARGET, ct
from runtimes.coreml.translate.package import Written, tidy, write_package
from runtimes.coreml.translate.program import translate
from toolkit.errors import StageError
from toolkit.types import Engine, LoweredGraph

__all__ = ["PACKAGE", "build_engine"]

PACKAGE = "model.mlpackage"
_ATTENTION = "scaled_dot_product_attention"
_UNRUN = "Apple's kernels were not run: Core ML runs on Apple devices only"


def build_engine(graph: LoweredGraph) -> Engine:
    """Write `model.mlpackage` beside the graph; the engine is `built`, for nothing of it runs here.

    Raises UnsupportedError where an operator has no form in an ML Program, StageError where coremltools refuses one or
    an attention of the graph is no longer one operator.
    """
    model = ir.load(graph.path)
    program = translate(model, graph.spec.dims)
    tidy(program)
    _demand_attention(model, program)
    folder = graph.path.parent / PACKAGE
    shutil.rmtree(folder, ignore_errors=True)
    written = write_package(program, folder, {"toolkit.model": graph.spec.name, "toolkit.graph": graph.sha256})
    version = f"coremltools {ct.__version__}"
    return Engine(graph, "built", version, written.files, _UNRUN, _details(graph, written), _said(written))


def _demand_attention(model: ir.Model, program: Any) -> None:
    """The fusion contract holds in the program too: as many operators as attentions, or the modules are named."""
    wanted = [node for node in model.graph if node.op_type == "Attention"]
    operations = program.functions["main"].operations
    found = [operation.outputs[0].name for operation in operations if operation.op_type == _ATTENTION]
    if len(found) == len(wanted):
        return
    missing = [module_path(node) for node in wanted if coreml_name(str(node.outputs[0].name)) not in found]
    raise StageError(
        "build",
        f"{len(found)} of {len(wanted)} attentions are one operator in the program; missing: {', '.join(missing)}",
        hint="This is a bug; report the model.",
    )


def _details(graph: LoweredGraph, written: Written) -> Mapping[str, Any]:
    return {
        "package": PACKAGE,
        "deployment_target": TARGET.name,
        "inputs": written.inputs,
        "outputs": written.outputs,
        "states": written.states,
        "graph_inputs": [
            {"name": item.name, "dtype": item.dtype, "shape": list(item.shape)} for item in graph.spec.inputs
        ],
        "graph_outputs": [item.name for item in graph.spec.outputs],
        "operators": written.operators,
        "attention": written.operators.get(_ATTENTION, 0),
        "compressed_weights": _compressed(written),
        "bytes": written.bytes,
    }


def _compressed(written: Written) -> int:
    return sum(count for name, count in written.operators.items() if name.startswith("constexpr_"))


def _said(written: Written) -> str:
    parts = [f"ML Program for {TARGET.name}", f"{written.operators.get(_ATTENTION, 0)} attention operators"]
    parts += [f"{_compressed(written)} compressed weights"] if _compressed(written) else []
    parts += [f"{len(written.states)} states"] if written.states else []
    return ", ".join([*parts, f"{written.bytes / 2**20:.1f} MiB"])
