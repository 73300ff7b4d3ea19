"""Which operators a graph file calls, and which number types, read without its weights: how a session is opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from exporters.fused_attention.schema import DOMAIN, OP_TYPE

__all__ = ["Contents", "contents"]

_TURNING = frozenset({(DOMAIN, OP_TYPE), ("", "Transpose")})
_TYPE_ATTRIBUTES = frozenset({"to", "output_dtype"})


@dataclass(frozen=True, slots=True)
class Contents:
    """Domain and type of every node of the main graph, and the ONNX number types that the file names anywhere.

    `turns_integers` says that a `Transpose`, or an attention, which has one in its body, reads dequantized activations,
    or in a graph of one fixed shape a `MatMul` with a bias, which ONNX Runtime makes a `Gemm` between Reshapes;
    `rounds_tokens` that activations are dequantized with a scale for each block of their last axis.
    """

    operators: frozenset[tuple[str, str]] = frozenset()
    dtypes: frozenset[int] = frozenset()
    turns_integers: bool = False
    rounds_tokens: bool = False


def contents(path: Path) -> Contents:
    """What the file holds; nothing for one that is no graph: ONNX Runtime refuses such a file in its own words."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return Contents()
    called = frozenset((node.domain, node.op_type) for node in model.graph.node)
    restored = _restored(model.graph)
    tokens = any(attribute.name == "block_size" for node in restored for attribute in node.attribute)
    return Contents(called, frozenset(_dtypes(model)), _turns_integers(model.graph, restored), tokens)


def _restored(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The `DequantizeLinear` of activations."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] not in weights]


def _turns_integers(graph: onnx.GraphProto, restored: list[onnx.NodeProto]) -> bool:
    dequantized = {node.output[0] for node in restored}
    turning = (node for node in graph.node if (node.domain, node.op_type) in _TURNING)
    if any(dequantized & set(node.input) for node in turning):
        return True
    products = {n.output[0] for n in graph.node if n.op_type == "MatMul" and dequantized & set(n.input)}
    biased = any(node.op_type == "Add" and products & set(node.input) for node in graph.node)
    return biased and _is_fixed(graph)


def _is_fixed(graph: onnx.GraphProto) -> bool:
    return all(axis.HasField("dim_value") for value in graph.input for axis in value.type.tensor_type.shape.dim)


def _dtypes(model: onnx.ModelProto) -> Iterator[int]:
    """A type enters a graph by its inputs, its weights, its constants and its casts."""
    yield from (value.type.tensor_type.elem_type for value in model.graph.input)
    yield from (tensor.data_type for tensor in model.graph.initializer)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for attribute in (attribute for node in nodes for attribute in node.attribute):
            if attribute.name in _TYPE_ATTRIBUTES:
                yield attribute.i
            elif attribute.HasField("t"):
                yield attribute.t.data_type
