"""Model-local functions into the graph: TensorRT does so itself, but not for every call, and goes by the name first."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from toolkit.types import Step

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model) -> list[Step]:
    """Put every function's nodes in the place of its calls; calls may leave out inputs and outputs."""
    calls = 0
    for graph in (model.graph, *model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            function = model.functions.get(node.op_identifier())
            if function is not None:
                # The inliner wants a value for each output, also where the call leaves the last ones out.
                node.resize_outputs(max(len(node.outputs), len(function.outputs)))
                calls += 1
    if model.functions:
        InlinePass()(model)
    return [Step("lower", "function calls inlined", calls, "TensorRT refuses or misreads some")] if calls else []
