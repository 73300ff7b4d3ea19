"""Operators that Core ML's provider does not take, written in those that it takes; shapes must be known by then."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter
from toolkit.types import Step

__all__ = ["replace_expands", "replace_gathers", "replace_norms"]

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where"})


def replace_gathers(model: ir.Model, emit: Emitter) -> list[Step]:
    """One constant index along an axis, as a class token is taken: `Slice` and `Squeeze`."""
    nodes = [node for node in model.graph if node.op_type == "Gather" and _index(node) is not None]
    for node in nodes:
        start, axis = _index(node) or 0, node.attributes.get_int("axis", 0)
        end = start + 1 if start != -1 else int(np.iinfo(np.int64).max)
        numbers = [emit.constant(np.array([each], np.int64)) for each in (start, end, axis)]
        sliced = emit.before(node, "Slice", [node.inputs[0], *numbers])
        squeezed = emit.before(node, "Squeeze", [sliced.outputs[0], numbers[2]], like=node.outputs[0])
        emit.replace(node.outputs[0], squeezed.outputs[0])
    return [Step("lower", "Gather as Slice", len(nodes), "Core ML takes no Gather")] if nodes else []


def replace_expands(model: ir.Model, emit: Emitter) -> list[Step]:
    """An `Expand` whose readers broadcast anyway is left out; another one becomes a `Tile`."""
    done = 0
    for node in [node for node in model.graph if node.op_type == "Expand"]:
        source, result = node.inputs[0], node.outputs[0]
        given, wanted = _static(source), _static(result)
        if source is None or given is None or wanted is None or len(given) != len(wanted):
            continue
        if not result.is_graph_output() and all(_broadcasts(use.node, result) for use in result.uses()):
            emit.replace(result, source)
        else:
            repeats = [want // have for have, want in zip(given, wanted, strict=True)]
            tiled = emit.before(node, "Tile", [source, emit.constant(np.array(repeats, np.int64))], like=result)
            emit.replace(result, tiled.outputs[0])
        done += 1
    return [Step("lower", "Expand left out or as Tile", done, "Core ML takes no Expand")] if done else []


def replace_norms(model: ir.Model, emit: Emitter) -> list[Step]:
    """`ReduceL2` as the root of a sum of squares."""
    nodes = [node for node in model.graph if node.op_type == "ReduceL2"]
    for node in nodes:
        result = node.outputs[0]
        square = emit.before(node, "Mul", [node.inputs[0], node.inputs[0]], like=node.inputs[0])
        summed = emit.before(
            node, "ReduceSum", [square.outputs[0], *node.inputs[1:]], dict(node.attributes), like=result
        )
        root = emit.before(node, "Sqrt", [summed.outputs[0]], like=result)
        emit.replace(result, root.outputs[0])
    return [Step("lower", "ReduceL2 as Sqrt of ReduceSum", len(nodes), "Core ML takes no ReduceL2")] if nodes else []


def _index(node: ir.Node) -> int | None:
    """The constant index, a scalar, of a `Gather` of activations."""
    data, index = node.inputs[0], node.inputs[1]
    if data is None or data.const_value is not None or index is None or index.const_value is None:
        return None
    return int(index.const_value.numpy()) if not index.const_value.shape else None


def _static(value: ir.Value | None) -> list[int] | None:
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return [int(dim) for dim in value.shape if isinstance(dim, int)]


def _broadcasts(node: ir.Node, expanded: ir.Value) -> bool:
    """Whether another input already has the size of the result, so that the expanded one need not."""
    others = [value for value in node.inputs if value is not None and value is not expanded]
    wanted = _static(node.outputs[0])
    return node.op_type in _ELEMENTWISE and wanted is not None and any(_static(each) == wanted for each in others)
