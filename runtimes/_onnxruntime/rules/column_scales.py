"""A constant factor on each column of a Linear's result, as LayerScale is one, into the Linear's own constants.

x·W·diag(f) = x·(W·diag(f)): fp32 weights take the factor, int8 weights keep their integers and their scales take it.
The sum with the residual then comes right behind the product, where one kernel can do both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter, same_dim
from runtimes._onnxruntime.rules.float_linear import float_linear_at
from toolkit.types import Step

__all__ = ["fold_column_scales"]

_INT8 = "MatMulIntegerToFloat"
_SCALES, _BIAS = 3, 6

_Input = tuple[ir.Node, int, ir.Value]
_Made = dict[tuple[ir.Value, ir.Value], ir.Value]
"""Scaled constants by what they were made of: exporters store equal constants once."""


def fold_column_scales(model: ir.Model, emit: Emitter) -> list[Step]:
    """Fold every `Mul` of a Linear's result, which nothing else may read, with fp32 constants [N]."""
    nodes = [node for node in list(model.graph) if node.op_type == "Mul" and not node.domain]
    made: _Made = {}
    folded = sum(_fold(node, emit, made) for node in nodes)
    return [Step("lower", "column factors folded into their Linear", folded, "as LayerScale's")] if folded else []


def _fold(mul: ir.Node, emit: Emitter, made: _Made) -> bool:
    for result, factors in (mul.inputs, reversed(mul.inputs)):
        if result is None or factors is None or not _fits(result, factors) or not (inputs := _inputs(result)):
            continue
        for node, index, value in inputs:
            if (value, factors) not in made:
                made[value, factors] = _scaled(emit, value, factors)
            node.replace_input_with(index, made[value, factors])
        emit.replace(mul.outputs[0], result)
        if mul.graph is not None:
            mul.graph.remove(mul, safe=True)
        return True
    return False


def _fits(result: ir.Value, factors: ir.Value) -> bool:
    """Whether the factors are one a column of a result that only their product reads."""
    constant = factors.is_initializer() and factors.dtype == ir.DataType.FLOAT and factors.const_value is not None
    if not constant or factors.shape is None or factors.shape.rank() != 1 or result.shape is None:
        return False
    return same_dim(factors, 0, result, -1) and len(result.uses()) == 1 and not result.is_graph_output()


def _inputs(result: ir.Value) -> Sequence[_Input]:
    """The constants that are to take the factors, where a Linear makes `result`; none where something else does."""
    node = result.producer()
    if node is None:
        return ()
    return _int8_inputs(node) if node.op_type == _INT8 else _float_inputs(node)


def _int8_inputs(node: ir.Node) -> Sequence[_Input]:
    inputs = [*node.inputs, *[None] * (_BIAS + 1 - len(node.inputs))]
    found = [(node, index, value) for index in (_SCALES, _BIAS) if (value := inputs[index]) is not None]
    return found if all(value.const_value is not None for _, _, value in found) else ()


def _float_inputs(last: ir.Node) -> Sequence[_Input]:
    products = [last, *(value.producer() for value in last.inputs if value is not None)]
    linears = [linear for node in products if node is not None and (linear := float_linear_at(node)) is not None]
    linear = next((linear for linear in linears if linear.last is last), None)
    # A tied matrix would be stored twice.
    if linear is None or len(linear.weight.uses()) > 1:
        return ()
    bias = [] if linear.bias is None else [(last, list(last.inputs).index(linear.bias), linear.bias)]
    return [(linear.product, 1, linear.weight), *bias]


def _scaled(emit: Emitter, value: ir.Value, factors: ir.Value) -> ir.Value:
    source, scales = value.const_value, factors.const_value
    if source is None or scales is None:
        raise ValueError(f"{value.name} is not a constant")
    shape = np.broadcast_shapes(tuple(source.shape), tuple(scales.shape))
    made = ir.LazyTensor(
        lambda: ir.tensor((source.numpy() * scales.numpy()).astype(np.float32)), ir.DataType.FLOAT, ir.Shape(shape)
    )
    return emit.initializer(made, f"{value.name}.scaled_by.{factors.name}")
