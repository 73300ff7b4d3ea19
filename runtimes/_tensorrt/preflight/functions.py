"""Calls of model-local functions: TensorRT inlines them, with exceptions."""

from __future__ import annotations

from collections.abc import Iterator

import onnx.defs
import onnx_ir as ir

from runtimes._tensorrt.preflight.finding import Finding

__all__ = ["calls"]

_INLINE = "inline the function"


def calls(node: ir.Node, function: ir.Function) -> Iterator[Finding]:
    """What is wrong with this call. The parser looks at an operator's name before it looks for functions."""
    if onnx.defs.has(node.op_type):
        yield Finding(f"the function is read as ONNX's {node.op_type}", f"{_INLINE}, or rename it")
    if len(node.inputs) < len(function.inputs) or any(value is None for value in node.inputs):
        yield Finding("a call that omits an optional input is refused", _INLINE)
    if len(node.outputs) < len(function.outputs) or any(not output.name for output in node.outputs):
        yield Finding("a call that leaves out an output is refused", f"{_INLINE}, or name every output")
