"""Which operators a graph file calls, read without its weights: what decides how a session is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from exporters.fused_attention.schema import DOMAIN, OP_TYPE

__all__ = ["operators", "turns_integers"]


def operators(path: Path) -> frozenset[tuple[str, str]]:
    """Domain and type of every node of the main graph; none for a file that is no graph.

    ONNX Runtime refuses such a file in its own words.
    """
    return frozenset((node.domain, node.op_type) for node in _nodes(path))


def turns_integers(path: Path) -> bool:
    """Whether a `Transpose`, or an attention, which has one in its body, reads dequantized activations."""
    nodes = _nodes(path)
    made = {name for node in nodes for name in node.output}
    stored = (node for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in made)
    dequantized = {node.output[0] for node in stored}
    turning = (node for node in nodes if (node.domain, node.op_type) in {(DOMAIN, OP_TYPE), ("", "Transpose")})
    return any(dequantized & set(node.input) for node in turning)


def _nodes(path: Path) -> Sequence[onnx.NodeProto]:
    try:
        nodes: Sequence[onnx.NodeProto] = onnx.load(path, load_external_data=False).graph.node
    except DecodeError:
        return ()
    return nodes
