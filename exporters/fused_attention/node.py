"""Reading `toolkit::FusedAttention` nodes of an `onnx_ir` graph: what lowering rules work from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.fused_attention.schema import DOMAIN, OP_TYPE
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NO_MASK", "NO_SLOPES", "FusedAttention", "attention_nodes", "is_attention", "read"]

NO_MASK = "toolkit.no_mask"
"""Name of the initializer that stands for an absent mask; it changes no score."""
NO_SLOPES = "toolkit.no_slopes"
"""Name of the initializer that stands for absent ALiBi slopes: zeros."""


@dataclass(frozen=True, slots=True, eq=False)
class FusedAttention:
    """One attention, read from its node. Shapes are in `docs/operators/FusedAttention.md`.

    An absent input is None, whether it is missing on the node or a neutral constant stands in for it.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    attn_mask: ir.Value | None
    alibi_slopes: ir.Value | None
    scale: float
    is_causal: bool
    softcap: float
    left_window_size: int
    right_window_size: int
    output: ir.Value
    past_key: ir.Value | None = None
    past_value: ir.Value | None = None
    present_key: ir.Value | None = None
    present_value: ir.Value | None = None

    @property
    def cached(self) -> bool:
        """Whether the node owns a cache: it takes a past and answers what the next step takes."""
        return self.past_key is not None


def is_attention(node: ir.Node) -> bool:
    """Whether the node is a `toolkit::FusedAttention`."""
    return bool(node.domain == DOMAIN and node.op_type == OP_TYPE)


def read(node: ir.Node) -> FusedAttention:
    """The node's inputs and attributes by name.

    Raises UsageError for another operator, a missing required input or a missing attribute.
    """
    if not is_attention(node):
        raise UsageError(
            f"node '{node.name}' is {node.domain or 'ai.onnx'}::{node.op_type}, not {DOMAIN}::{OP_TYPE}",
            hint="Choose nodes with is_attention() or attention_nodes() first.",
        )
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    presents = [*node.outputs[1:], None, None]
    if (inputs[5] is None) != (inputs[6] is None):
        raise UsageError(
            f"attention node '{node.name}' has a past key or a past value alone",
            hint="past_key and past_value are given together, or neither.",
        )
    query, key, value = (_required(node, index) for index in range(3))
    return FusedAttention(
        query,
        key,
        value,
        _unless_neutral(inputs[3], NO_MASK),
        _unless_neutral(inputs[4], NO_SLOPES),
        _attribute(node, "scale").as_float(),
        bool(_attribute(node, "is_causal").as_int()),
        _attribute(node, "softcap").as_float(),
        _attribute(node, "left_window_size").as_int(),
        _attribute(node, "right_window_size").as_int(),
        node.outputs[0],
        inputs[5],
        inputs[6],
        presents[0],
        presents[1],
    )


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """All `toolkit::FusedAttention` nodes of the main graph and its subgraphs, in graph order."""
    nodes: Iterator[ir.Node] = ir.traversal.RecursiveGraphIterator(model.graph)
    return [node for node in nodes if is_attention(node)]


def _required(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        name = ("query", "key", "value")[index]
        raise UsageError(
            f"attention node '{node.name}' has no {name}", hint="query, key and value are required inputs."
        )
    return value


def _unless_neutral(value: ir.Value | None, neutral: str) -> ir.Value | None:
    return None if value is None or value.name == neutral else value


def _attribute(node: ir.Node, name: str) -> ir.Attr:
    if name not in node.attributes:
        raise UsageError(
            f"attention node '{node.name}' lacks the attribute '{name}'",
            hint="scale, is_causal, softcap, left_window_size and right_window_size are written on every node.",
        )
    return node.attributes[name]
