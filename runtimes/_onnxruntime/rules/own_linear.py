"""`MatMulNBits` with int8 activations to the toolkit's own operators, which fall back to it through their functions.

Where a weight carries an offset, product, sums over blocks, correction and Add become one node.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.function import LINEAR, LINEAR_OFFSET, attach, linear_function
from runtimes._onnxruntime.rules.block_linear import INT8_ACTIVATIONS
from toolkit.types import Step

__all__ = ["use_block_linear"]

_ATTRIBUTES = ("K", "N", "bits", "block_size")
_BIAS = 5


def use_block_linear(model: ir.Model, emit: Emitter) -> list[Step]:
    """Replace every symmetric product whose activations may be rounded, and attach the functions that it then calls.

    Runs after weights were packed. Products with zero points, and those at another accuracy level, stay.
    """
    made = [_replace(emit, node) for node in list(model.graph) if _fits(node)]
    counts = Counter(node.op_type for node in made)
    for op_type in counts:
        ranks = {_rank(node.inputs[0]) for node in made if node.op_type == op_type}
        rank = ranks.pop() if len(ranks) == 1 else None
        attach(model, linear_function(op_type, model.opset_imports.get("", 1), rank))
    steps = [
        Step("lower", f"MatMulNBits -> {DOMAIN}::{LINEAR}", counts[LINEAR], "same weights, own kernel"),
        Step("lower", f"MatMulNBits with offsets -> {DOMAIN}::{LINEAR_OFFSET}", counts[LINEAR_OFFSET], "five in one"),
    ]
    return [step for step in steps if step.count]


def _fits(node: ir.Node) -> bool:
    if node.op_type != "MatMulNBits" or node.domain != "com.microsoft":
        return False
    x, weight, scales, *others = node.inputs
    constants = [weight, scales]
    if x is None or any(value is None or not value.is_initializer() for value in constants):
        return False
    only_bias = all(value is None for value in others[: _BIAS - 3])
    level, bits = (node.attributes.get_int(name, 0) for name in ("accuracy_level", "bits"))
    return only_bias and level == INT8_ACTIVATIONS and bits in {4, 8} and scales.dtype == ir.DataType.FLOAT


def _replace(emit: Emitter, node: ir.Node) -> ir.Node:
    bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    found = _offset(node) if bias is None else None
    total, offset = found or (node, None)
    inputs = [*node.inputs[:3], *([offset] if offset is not None else [])]
    op_type = LINEAR if offset is None else LINEAR_OFFSET
    attributes = {name: node.attributes.get_int(name) for name in _ATTRIBUTES}
    old = total.outputs[0]
    made = emit.before(node, op_type, inputs, attributes, domain=DOMAIN, like=old)
    last = made if bias is None else emit.before(node, "Add", [made.outputs[0], bias], like=old)
    emit.replace(old, last.outputs[0])
    for dead in dict.fromkeys((total, node)):
        if dead.graph is not None:
            dead.graph.remove(dead, safe=True)
    return made


def _offset(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add that completes the product with (sum of x over each block) · offset, and the offset [K / size, N]."""
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) != 1 or product.is_graph_output() or not _is(uses[0].node, "Add"):
        return None
    total = uses[0].node
    other = total.inputs[1 - uses[0].idx]
    correction = other.producer() if other is not None else None
    if correction is None or not _is(correction, "MatMul"):
        return None
    sums, offset = correction.inputs
    blocks, columns = _blocks_of(node), node.attributes.get_int("N", 0)
    constant = offset is not None and offset.is_initializer() and offset.dtype == ir.DataType.FLOAT
    if not constant or offset is None or offset.shape is None or list(offset.shape) != [blocks, columns]:
        return None
    return (total, offset) if _is_block_sums(sums, node) else None


def _is_block_sums(sums: ir.Value | None, node: ir.Node) -> bool:
    """Whether the value is what the node reads, split along its last axis and summed block by block."""
    reduce = sums.producer() if sums is not None else None
    if reduce is None or not _is(reduce, "ReduceSum") or reduce.attributes.get_int("keepdims", 1):
        return False
    split, axes = (*reduce.inputs, None)[:2]
    reshape = split.producer() if split is not None else None
    if reshape is None or not _is(reshape, "Reshape") or reshape.inputs[0] is not node.inputs[0]:
        return False
    target = _numbers(reshape.inputs[1])
    size = node.attributes.get_int("block_size", 0)
    # Zeros keep the leading dimensions, so that only the last one is split.
    whole = target[-2:] == [_blocks_of(node), size] and not any(target[:-2])
    return whole and _numbers(axes) in ([len(target) - 1], [-1])


def _rank(value: ir.Value | None) -> int | None:
    return value.shape.rank() if value is not None and value.shape is not None else None


def _blocks_of(node: ir.Node) -> int:
    columns: int = node.attributes.get_int("K", 0)
    size: int = node.attributes.get_int("block_size", 1)
    return columns // size


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and not node.domain


def _numbers(value: ir.Value | None) -> list[int]:
    constant = value.const_value if value is not None else None
    return [int(number) for number in constant.numpy().reshape(-1)] if constant is not None else []
