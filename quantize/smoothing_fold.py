"""Where a factor on an activation's channels can go for nothing: into the weights of the node that makes it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.fused_attention.node import is_attention
from quantize.linears import add_initializer
from quantize.nodes import constant, map_tensor

__all__ = ["Fold", "find_fold", "rescale"]

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_SWAP = [0, 2, 1, 3]
"""Swaps heads and tokens."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Constant inputs, as (node, index, axis): the axis that runs along the activation's channels."""

    kind: Literal["norm", "value"]
    places: tuple[tuple[ir.Node, int, int], ...]

    def apply(self, graph: ir.Graph, factor: NDArray[np.float32]) -> None:
        """Multiply all of them by `factor` [K]."""
        for node, index, axis in self.places:
            rescale(graph, node, index, factor, axis)


def find_fold(activation: ir.Value, width: int, readers: Set[ir.Node]) -> Fold | None:
    """Where a factor on `activation` [..., `width`] can go, or None where only a node of its own is right.

    Exact are the weight and bias of a normalisation that only `readers` read, and the weight and bias of the value
    projection of an attention with as many value heads as query heads: attention mixes rows, not channels.
    """
    if activation.is_graph_output() or any(use.node not in readers or use.idx != 0 for use in activation.uses()):
        return None
    node = activation.producer()
    if node is None:
        return None
    return _norm(node, width) if node.op_type in _NORMS else _value_projection(node, width)


def rescale(graph: ir.Graph, node: ir.Node, index: int, factor: NDArray[np.float32], axis: int) -> None:
    """Multiply a constant input along `axis`; a constant that has other readers is not touched, but copied.

    The product is made when it is read, and not kept.
    """
    value = node.inputs[index]
    tensor = constant(value)
    if value is None or tensor is None:
        raise ValueError(f"input {index} of {node.name} is not a constant")
    along = factor.reshape([-1 if i == axis % len(tensor.shape) else 1 for i in range(len(tensor.shape))])
    product = ir.LazyTensor(
        lambda: ir.tensor(map_tensor(tensor, lambda array: array * along)),
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=value.name,
    )
    if len(value.uses()) == 1 and not value.is_graph_output():
        value.const_value = product
    else:
        node.replace_input_with(index, add_initializer(graph, f"{value.name}_smoothed", product))


def _norm(node: ir.Node, width: int) -> Fold | None:
    indices = [index for index in (1, 2) if index < len(node.inputs) and node.inputs[index] is not None]
    # A weight of more than the channels normalises several axes together.
    if 1 not in indices or any(not _is_vector(node.inputs[index], width) for index in indices):
        return None
    return Fold("norm", tuple((node, index, 0) for index in indices))


def _value_projection(merged: ir.Node, width: int) -> Fold | None:
    """Follows Reshape(Transpose(FusedAttention(.., .., Transpose(Reshape(projection))))) that nothing else reads."""
    transposed = _before(merged, 0)
    attention = _before(transposed, 0)
    heads = _before(attention, 2)
    split = _before(heads, 0)
    if transposed is None or attention is None or heads is None or split is None:
        return None
    operators = [node.op_type for node in (merged, transposed, heads, split)]
    if operators != ["Reshape", "Transpose", "Transpose", "Reshape"] or not is_attention(attention):
        return None
    if any(list(node.attributes.get_ints("perm", ())) != _SWAP for node in (transposed, heads)):
        return None
    return _projection(_before(split, 0), width) if _channels(split) == width else None


def _projection(last: ir.Node | None, width: int) -> Fold | None:
    """The weight and bias of a Linear with `width` outputs; fewer value heads than query heads give fewer."""
    if last is None:
        return None
    places: list[tuple[ir.Node, int, int]] = []
    product: ir.Node | None = last
    if last.op_type == "Add":
        index = 1 if constant(last.inputs[1]) is not None else 0
        places, product = [(last, index, 0)], _before(last, 1 - index)
    if product is None or product.op_type not in {"MatMul", "Gemm"}:
        return None
    axis = 0 if product.op_type == "Gemm" and product.attributes.get_int("transB", 0) else 1
    if len(product.inputs) > 2 and product.inputs[2] is not None:
        places.append((product, 2, 0))
    tensor = constant(product.inputs[1])
    vectors = all(_is_vector(node.inputs[index], width) for node, index, _ in places)
    if not vectors or tensor is None or len(tensor.shape) != 2 or tensor.shape[axis] != width:
        return None
    return Fold("value", ((product, 1, axis), *places))


def _channels(split: ir.Node) -> int | None:
    """Heads times head size, of a Reshape to [batch, tokens, heads, head size]."""
    target, shape = constant(split.inputs[1]), split.outputs[0].shape
    sizes = list(target.numpy()) if target is not None else list(shape or ())
    if len(sizes) != 4 or any(not isinstance(size, int | np.integer) or size < 1 for size in sizes[2:]):
        return None
    return int(sizes[2] * sizes[3])


def _before(node: ir.Node | None, index: int) -> ir.Node | None:
    """What makes an input of `node`, where nobody else reads it."""
    value = node.inputs[index] if node is not None and index < len(node.inputs) else None
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return value.producer()


def _is_vector(value: ir.Value | None, width: int) -> bool:
    tensor = constant(value)
    return tensor is not None and list(tensor.shape) == [width]
