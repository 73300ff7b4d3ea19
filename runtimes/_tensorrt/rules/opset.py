"""An older opset for TensorRT 10, whose parser is of ONNX 1.17 since 10.6."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from exporters.canonical import module_path
from toolkit.errors import UnsupportedError
from toolkit.types import Step

__all__ = ["LAST_OPSET", "lower_opset"]

LAST_OPSET = 22
"""The last one of ONNX 1.17, which the parser is built with from TensorRT 10.6 on."""
_SHOWN = 3


def lower_opset(model: ir.Model) -> list[Step]:
    """Import opset 22 where every node means the same there.

    From 22 to 25 ONNX added operators, tensor types and attributes, and changed the meaning of none that was left
    without them: a node whose attributes and inputs version 22 knows is the same node.
    Raises UnsupportedError that names the operators which are newer.
    """
    opset = model.opset_imports.get("", 0)
    if opset <= LAST_OPSET:
        return []
    newer = list(_newer(model))
    if newer:
        more = f"; and {len(newer) - _SHOWN} more" if len(newer) > _SHOWN else ""
        raise UnsupportedError(
            f"TensorRT 10 cannot take this graph of ONNX opset {opset}: {'; '.join(newer[:_SHOWN])}{more}",
            hint=f"Export with --opset {LAST_OPSET}, or for the target trt or ort-cuda.",
        )
    model.opset_imports[""] = LAST_OPSET
    return [Step("lower", f"opset {opset} -> {LAST_OPSET}", 1, "what TensorRT 10 parses from 10.6 on")]


def _newer(model: ir.Model) -> Iterator[str]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        reason = "" if node.domain not in ("", "ai.onnx") else _why_newer(node)
        if reason:
            module = module_path(node)
            yield f"{node.op_type} '{node.name}'{f' of {module}' if module else ''} {reason}"


def _why_newer(node: ir.Node) -> str:
    try:
        schema = onnx.defs.get_schema(node.op_type, LAST_OPSET, "")
    except onnx.defs.SchemaError:
        return f"is not in opset {LAST_OPSET}"
    unknown = [name for name in node.attributes if name not in schema.attributes]
    if unknown:
        return f"has {', '.join(unknown)}, which opset {LAST_OPSET} does not know"
    return "has more inputs" if len(node.inputs) > schema.max_input else ""
