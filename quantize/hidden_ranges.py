"""What fused nodes compute inside and no tensor of the graph shows: squares of normalisations, attention scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporters.fused_attention.node import is_attention, read

__all__ = ["Hidden", "Kind", "add_hidden", "hidden_of"]

Kind = Literal["squares", "sum of squares", "scores"]

_ROWS, _PER_GROUP = "quantize.row_axis", "quantize.minus_one"


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """An intermediate of `node`: `name` is what it is called where it is written out to be measured."""

    node: ir.Node
    kind: Kind
    name: str


def hidden_of(graph: ir.Graph) -> list[Hidden]:
    """The intermediates of every float32 LayerNormalization, RMSNormalization and fused attention of the graph."""
    return [
        Hidden(node, kind, f"quantize.{kind.replace(' ', '_')}.{node.outputs[0].name}")
        for node in graph
        if node.inputs and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT
        for kind in _kinds(node)
    ]


def add_hidden(proto: ModelProto, hidden: Sequence[Hidden]) -> None:
    """Append the nodes that compute them; nothing of the graph's own changes."""
    if not hidden:
        return
    constants = ((_ROWS, np.array([1])), (_PER_GROUP, np.array([-1])))
    proto.graph.initializer.extend(numpy_helper.from_array(array.astype(np.int64), name) for name, array in constants)
    for each in hidden:
        if each.kind == "scores":
            _add_scores(proto, each)
        else:
            proto.graph.node.extend(_squares(each))


def _kinds(node: ir.Node) -> tuple[Kind, ...]:
    if is_attention(node):
        return ("scores",)
    return ("squares", "sum of squares") if node.op_type in {"LayerNormalization", "RMSNormalization"} else ()


def _squares(hidden: Hidden) -> Iterator[NodeProto]:
    """(x - mean)² of a LayerNormalization, x² of an RMSNormalization, over the axes that it normalises.

    Their sum is what a mean in fp16 passes through.
    """
    node, made = hidden.node, hidden.name
    rows, deviation = f"{made}.rows", f"{made}.deviation"
    yield helper.make_node("Flatten", [_name(node.inputs[0])], [rows], axis=node.attributes.get_int("axis", -1))
    if node.op_type == "LayerNormalization":
        yield helper.make_node("ReduceMean", [rows, _ROWS], [f"{made}.mean"], keepdims=1)
        yield helper.make_node("Sub", [rows, f"{made}.mean"], [deviation])
    else:
        deviation = rows
    if hidden.kind == "squares":
        yield helper.make_node("Mul", [deviation, deviation], [made])
    else:
        yield helper.make_node("ReduceSumSquare", [deviation, _ROWS], [made], keepdims=0)


def _add_scores(proto: ModelProto, hidden: Hidden) -> None:
    """q · kᵀ · scale over past and new keys, before mask and softcap, [B, Hkv, Hq / Hkv · Sq, Skv].

    It is as large as what the attention's own body computes, and is reduced before the next is made.
    """
    attention, made = read(hidden.node), hidden.name
    keys = _name(attention.present_key if attention.present_key is not None else attention.key)
    constants = {"scale": np.float32(attention.scale), "zero": np.array([0], np.int64)}
    proto.graph.initializer.extend(_constant(f"{made}.{name}", array) for name, array in constants.items())

    def add(op_type: str, inputs: list[str], output: str, **attributes: Any) -> None:
        proto.graph.node.append(helper.make_node(op_type, inputs, [f"{made}{output}"], **attributes))

    zero = f"{made}.zero"
    add("Mul", [_name(attention.query), f"{made}.scale"], ".scaled")
    add("Shape", [keys], ".heads", start=1, end=2)
    add("Concat", [zero, f"{made}.heads", _PER_GROUP, zero], ".shape", axis=0)
    add("Reshape", [f"{made}.scaled", f"{made}.shape"], ".grouped")
    add("Transpose", [keys], ".transposed", perm=[0, 1, 3, 2])
    add("MatMul", [f"{made}.grouped", f"{made}.transposed"], "")


def _constant(name: str, array: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def _name(value: ir.Value | None) -> str:
    if value is None or not value.name:
        raise ValueError("a value without a name cannot be watched")
    return str(value.name)
