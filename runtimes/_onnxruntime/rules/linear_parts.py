"""What stands around a Linear in a lowered graph: roundings, factors, activations, residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from runtimes._onnxruntime.emit import same_dim
from runtimes._onnxruntime.kernels.function import QUICK_GELU_SLOPE
from runtimes._onnxruntime.rules.token_rounding import token_readers

__all__ = [
    "GELU_OPSET",
    "MOST_INPUTS",
    "Rounding",
    "activation_behind",
    "constant_array",
    "factor_behind",
    "is_int8_linear",
    "is_token_linear",
    "only_use",
    "residual_behind",
    "rounding_of",
]

GELU_OPSET = 20
"""The first with `Gelu`, which the functions of our own Linears are written with."""
MOST_INPUTS = 32768
"""Of an int8 Linear: sums of more may not fit in 32 bits."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """uint8 codes = QuantizeLinear(source [* multiplier], *parameters); the multiplier is [last axis].

    The parameters are a constant scale and zero point; none where each vector of the last axis is rounded by its own
    range.
    """

    source: ir.Value
    multiplier: ir.Value | None
    parameters: tuple[ir.Value | None, ...]

    @property
    def of_tokens(self) -> bool:
        """Whether each vector of the last axis has its own range."""
        return not self.parameters

    @property
    def constants(self) -> list[ir.Value | None]:
        """In the order of the operators' inputs."""
        return [*([self.multiplier] if self.multiplier is not None else []), *self.parameters]


def is_int8_linear(node: ir.Node) -> bool:
    """Whether it is a `MatMulIntegerToFloat` of float32 with a constant s8 weight [K, N] and constant parameters."""
    if node.op_type != "MatMulIntegerToFloat" or node.domain != "com.microsoft":
        return False
    codes, weight, scale, weight_scale, zero_point, weight_zero, bias = (*node.inputs, *[None] * 7)[:7]
    if codes is None or weight_zero is not None or not _is_weight(weight):
        return False
    columns = weight.shape[1] if weight is not None and weight.shape is not None else 0
    of_columns = _is_float(weight_scale, 1, columns) and (bias is None or _is_float(bias, columns))
    return of_columns and (_are_constant(scale, zero_point) or _are_of_tokens(codes, scale, zero_point))


def is_token_linear(node: ir.Node) -> bool:
    """Whether it is a `MatMulIntegerToFloat` whose scale and zero point are each token's own."""
    if node.op_type != "MatMulIntegerToFloat" or node.domain != "com.microsoft" or node.inputs[0] is None:
        return False
    return _are_of_tokens(node.inputs[0], node.inputs[2], node.inputs[4])


def rounding_of(codes: ir.Value | None) -> Rounding | None:
    """How a uint8 tensor was made from floats; None where it was not, or not with one constant scale."""
    node = codes.producer() if codes is not None else None
    if node is None or not _is(node, "QuantizeLinear"):
        return None
    source, scale, zero_point = (*node.inputs, None)[:3]
    measuring = token_readers(node)
    # The chain that measures a token holds floats alone, whether its source's type is known or not.
    fixed = source is not None and source.dtype == ir.DataType.FLOAT and _are_constant(scale, zero_point)
    if source is None or not (measuring or fixed):
        return None
    parameters = () if measuring else (scale, zero_point)
    alone = {use.node for use in source.uses()} == {*measuring, node} and not source.is_graph_output()
    found = _factor(source) if alone else None
    return Rounding(*found, parameters) if found else Rounding(source, None, parameters)


def factor_behind(value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The only reader, where it multiplies by a constant along the last axis, and that constant."""
    use = only_use(value, "Mul")
    found = _factor(use.node.outputs[0]) if use is not None else None
    return (use.node, found[1]) if use is not None and found is not None and found[0] is value else None


def activation_behind(value: ir.Value) -> tuple[str, list[ir.Node]]:
    """The name of the activation that alone reads the value, as `ACTIVATIONS` has it, and its nodes; or nothing."""
    uses = list(value.uses())
    if value.is_graph_output() or not all(_beside(value, use.node) for use in uses):
        return "", []
    if len(uses) == 1 and _is(uses[0].node, "Relu"):
        return "Relu", [uses[0].node]
    if len(uses) == 1 and _is(uses[0].node, "Gelu"):
        tanh = uses[0].node.attributes.get_string("approximate", "none") == "tanh"
        return "GeluTanh" if tanh else "Gelu", [uses[0].node]
    return _quick_gelu(value, [use.node for use in uses])


def residual_behind(value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The only reader, where it adds another float32 tensor of the same shape, and that tensor."""
    use = only_use(value, "Add")
    other = use.node.inputs[1 - use.idx] if use is not None else None
    if use is None or other is None or other is value or other.dtype != ir.DataType.FLOAT or not _alike(value, other):
        return None
    return use.node, other


def only_use(value: ir.Value, op_type: str) -> Any:
    """The one use of a value that is not an output of the graph, where it is of such a node beside it; else None."""
    uses = list(value.uses())
    fits = len(uses) == 1 and not value.is_graph_output() and _is(uses[0].node, op_type)
    return uses[0] if fits and _beside(value, uses[0].node) else None


def constant_array(value: ir.Value | None, default: float) -> NDArray[Any]:
    """The numbers of a constant, or the default alone."""
    constant = value.const_value if value is not None else None
    return constant.numpy() if constant is not None else np.asarray(default, np.float32)


def _alike(first: ir.Value, second: ir.Value) -> bool:
    if first.shape is None or second.shape is None or first.shape.rank() != second.shape.rank():
        return False
    return all(same_dim(first, axis, second, axis) for axis in range(first.shape.rank()))


def _quick_gelu(value: ir.Value, readers: list[ir.Node]) -> tuple[str, list[ir.Node]]:
    """y * sigmoid(1.702 * y)."""
    for scaled, product in (readers, readers[::-1]) if len(readers) == 2 else ():
        gate = only_use(scaled.outputs[0], "Sigmoid") if _is(scaled, "Mul") else None
        if gate is None or not _is(product, "Mul") or {*product.inputs} != {value, gate.node.outputs[0]}:
            continue
        slopes = [each for each in scaled.inputs if each is not value]
        if len(slopes) == 1 and _is_slope(slopes[0]):
            only = only_use(gate.node.outputs[0], "Mul")
            return ("QuickGelu", [scaled, gate.node, product]) if only is not None else ("", [])
    return "", []


def _is_slope(value: ir.Value | None) -> bool:
    """Whether it is QuickGelu's number, of a shape that changes nobody else's."""
    if value is None or value.shape is None or value.shape.rank() > 1 or not _is_scalar(value, ir.DataType.FLOAT):
        return False
    return bool(np.isclose(constant_array(value, 0.0), QUICK_GELU_SLOPE, rtol=1e-6).all())


def _beside(value: ir.Value, reader: ir.Node) -> bool:
    """Whether the reader runs as often as what makes the value: not in the body of a loop."""
    maker = value.producer()
    return maker is not None and reader.graph is maker.graph


def _factor(product: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """What is multiplied, and the constant of one number for each place on its last axis."""
    node = product.producer()
    if node is None or not _is(node, "Mul"):
        return None
    for source, factor in (node.inputs, node.inputs[::-1]):
        if source is None or factor is None or source.shape is None or source.dtype != ir.DataType.FLOAT:
            continue
        width = source.shape[-1] if source.shape.rank() else None
        vector = factor.shape is not None and factor.shape.rank() == 1
        if isinstance(width, int) and vector and _is_float(factor, width):
            return source, factor
    return None


def _is_weight(value: ir.Value | None) -> bool:
    if value is None or not _is_constant(value, ir.DataType.INT8) or value.shape is None:
        return False
    sizes = list(value.shape)
    return len(sizes) == 2 and all(isinstance(size, int) and size > 0 for size in sizes) and sizes[0] <= MOST_INPUTS


def _is_float(value: ir.Value | None, *sizes: object) -> bool:
    """Whether it is a float32 constant of one of these numbers of elements."""
    return value is not None and _is_constant(value, ir.DataType.FLOAT) and value.const_value.size in sizes


def _are_constant(scale: ir.Value | None, zero_point: ir.Value | None) -> bool:
    return _is_scalar(scale, ir.DataType.FLOAT) and _is_scalar(zero_point, ir.DataType.UINT8)


def _are_of_tokens(codes: ir.Value, scale: ir.Value | None, zero_point: ir.Value | None) -> bool:
    """Whether the codes were rounded by each token's range, with that scale and zero point."""
    node = codes.producer()
    return node is not None and bool(token_readers(node)) and tuple(node.inputs[1:]) == (scale, zero_point)


def _is_scalar(value: ir.Value | None, dtype: ir.DataType) -> bool:
    return value is not None and _is_constant(value, dtype) and value.const_value.size == 1


def _is_constant(value: ir.Value, dtype: ir.DataType) -> bool:
    fixed = value.is_initializer() and not value.is_graph_input()
    return fixed and value.dtype == dtype and value.const_value is not None


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and not node.domain
