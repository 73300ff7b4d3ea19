"""Each module of a graph by itself: fed with what the other side's module reads, it shows the noise that it adds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["Form", "as_fed", "fed_name", "isolated"]


def fed_name(tensor: str) -> str:
    """What an isolated graph calls the tensor where it is fed."""
    return f"compare.fed.{tensor}"


class Form(NamedTuple):
    """How a tensor is fed: in float16 or float32, and its rank."""

    half: bool
    rank: int


def isolated(proto: onnx.ModelProto, wanted: Collection[str], known: Mapping[str, Form]) -> onnx.ModelProto:
    """The part of the graph that makes `wanted`, in which every read of a `known` tensor is fed instead.

    So the noise of one module reaches no other. Inputs of the graph stay where something still reads them.
    """
    graph = proto.graph
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needed: set[int] = set()
    fed: dict[str, None] = {}
    todo = [producer[name] for name in wanted if name in producer]
    while todo:
        index = todo.pop()
        if index in needed:
            continue
        needed.add(index)
        for name in _read(graph.node[index]):
            if name in known:
                fed[name] = None
            elif name in producer:
                todo.append(producer[name])
    return _assembled(proto, sorted(needed), {name: known[name] for name in fed}, list(wanted))


def as_fed(array: NDArray[Any], divisor: NDArray[np.float32] | None, *, half: bool) -> NDArray[Any]:
    """The other side's tensor as this graph holds it: divided where it divides it, in its number type."""
    divided = array if divisor is None else array / divisor
    with np.errstate(over="ignore"):
        return np.asarray(divided, np.float16 if half else np.float32)


def _assembled(proto: onnx.ModelProto, nodes: list[int], fed: Mapping[str, Form], wanted: list[str]) -> onnx.ModelProto:
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    for field in ("node", "output", "value_info", "initializer", "input"):
        part.graph.ClearField(field)
    part.graph.node.extend(_redirected(proto.graph.node[index], set(fed)) for index in nodes)
    read = {name for node in part.graph.node for name in _read(node)}
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in read)
    part.graph.input.extend(value for value in proto.graph.input if value.name in read)
    part.graph.input.extend(_input(name, form) for name, form in fed.items())
    part.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    return part


def _input(name: str, form: Form) -> onnx.ValueInfoProto:
    dtype = onnx.TensorProto.FLOAT16 if form.half else onnx.TensorProto.FLOAT
    # Only the rank matters: sizes are those of each batch.
    return onnx.helper.make_tensor_value_info(fed_name(name), dtype, [f"{name}.{axis}" for axis in range(form.rank)])


def _redirected(node: onnx.NodeProto, fed: set[str]) -> onnx.NodeProto:
    if not fed & set(node.input):
        return node
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.ClearField("input")
    made.input.extend(fed_name(name) if name in fed else name for name in node.input)
    return made


def _read(node: onnx.NodeProto) -> list[str]:
    """What the node reads, the graphs in its attributes included."""
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    inner += [graph for attribute in node.attribute for graph in attribute.graphs]
    return [name for name in node.input if name] + [
        name for graph in inner for each in graph.node for name in _read(each)
    ]
