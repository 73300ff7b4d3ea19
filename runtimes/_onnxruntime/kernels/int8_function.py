"""The int8 Linears of domain `toolkit.cpu`: their names, their inputs, and what they mean in stock operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.function import ROUNDING, Body, activated

__all__ = ["INT8_LINEAR", "Int8Variant", "int8_function"]

INT8_LINEAR = "Int8Linear"
"""How the names of all of them begin."""

_WEIGHT = ("W", "W_scale", "bias")


@dataclass(frozen=True, slots=True)
class Int8Variant:
    """One of the operators: y = activation(x · W + bias) [+ residual], rounded to uint8 or not.

    Inputs in this order, all but `x` and `residual` constants:
    x float [.., K] (`of_codes`: uint8); x_multiplier float [K] if `smoothed`; x_scale float [], x_zero_point uint8 [],
    but not if `tokens`, where every vector [K] has them by its own range;
    W int8 [K, N], W_scale float [N], bias float [N], three times if `qkv`; residual float [.., N] if `residual`;
    y_multiplier float [N] if `smoothed_codes`; y_scale float [], y_zero_point uint8 [] if `to_codes`.
    """

    qkv: bool = False
    smoothed: bool = False
    of_codes: bool = False
    tokens: bool = False
    activation: str = ""
    residual: bool = False
    to_codes: bool = False
    smoothed_codes: bool = False

    @property
    def name(self) -> str:
        """The operator's name, as `int8_linear.cpp` composes it."""
        form = "Smoothed" if self.smoothed else "OfCodes" if self.of_codes else ""
        form += "Tokens" if self.tokens else ""
        codes = "ToSmoothedCodes" if self.smoothed_codes else "ToCodes" if self.to_codes else ""
        result = "Residual" if self.residual else codes
        return f"{INT8_LINEAR}{'Qkv' if self.qkv else ''}{form}{self.activation}{result}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the inputs are called in the function."""
        parameters = () if self.tokens else ("x_scale", "x_zero_point")
        x = ("x", *(("x_multiplier",) if self.smoothed else ()), *parameters)
        weights = tuple(f"{name}{i}" for i in range(3 if self.qkv else 1) for name in _WEIGHT)
        codes = ("y_multiplier", "y_scale", "y_zero_point")[0 if self.smoothed_codes else 1 :]
        return (*x, *weights, *(("residual",) if self.residual else ()), *(codes if self.to_codes else ()))


def int8_function(variant: Int8Variant, opset: int) -> ir.Function:
    """The body of one operator: `QuantizeLinear` and `com.microsoft::MatMulIntegerToFloat`, for opset 20 or later."""
    values = {name: ir.Value(name=name) for name in variant.inputs}
    body = Body()
    body.part = ROUNDING
    if variant.of_codes:
        x = _Codes(values["x"], values["x_scale"], values["x_zero_point"])
    else:
        smoothed = _smoothed(body, values["x"], values.get("x_multiplier"))
        x = _of_tokens(body, smoothed) if variant.tokens else _of_tensor(body, smoothed, values)
    outputs = []
    for i in range(3 if variant.qkv else 1):
        body.part = f"linear{i}"
        outputs.append(_product(body, x, *(values[f"{name}{i}"] for name in _WEIGHT)))
    body.part = ""
    if not variant.qkv:
        outputs = [_finished(body, outputs[0], variant, values)]
    opsets = {"": opset, "com.microsoft": 1}
    graph = ir.Graph(list(values.values()), outputs, nodes=body.nodes, opset_imports=opsets, name=variant.name)
    return ir.Function(DOMAIN, variant.name, graph=graph, attributes=[])


@dataclass(frozen=True, slots=True)
class _Codes:
    """uint8 [.., K], the scale and the zero point of the product, and of each token where those are [.., 1]."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    token_scale: ir.Value | None = None
    token_low: ir.Value | None = None


def _smoothed(body: Body, x: ir.Value, multiplier: ir.Value | None) -> ir.Value:
    return x if multiplier is None else body.op("Mul", [x, multiplier])


def _of_tensor(body: Body, x: ir.Value, values: Mapping[str, ir.Value]) -> _Codes:
    scale, zero_point = values["x_scale"], values["x_zero_point"]
    return _Codes(body.op("QuantizeLinear", [x, scale, zero_point]), scale, zero_point)


def _of_tokens(body: Body, x: ir.Value) -> _Codes:
    """Rounded before zero points are added, as `QuantizeLinear` does it, so that ties fall alike."""
    zero, axis = _number(body, 0.0), body.op("Constant", [], [ir.AttrInt64s("value_ints", [-1])])
    low = body.op("Min", [body.op("ReduceMin", [x, axis]), zero])
    high = body.op("Max", [body.op("ReduceMax", [x, axis]), zero])
    scale = body.op("Div", [body.op("Sub", [high, low]), _number(body, 255.0)])
    scale = body.op("Max", [scale, _number(body, float(np.finfo(np.float32).tiny))])
    inverse = body.op("Reciprocal", [scale])
    zeros = body.op("Round", [body.op("Mul", [body.op("Neg", [low]), inverse])])
    steps = body.op("Add", [body.op("Round", [body.op("Mul", [x, inverse])]), zeros])
    one, none = _number(body, 1.0), body.op("Constant", [], [ir.AttrTensor("value", ir.tensor(np.uint8(0)))])
    codes = body.op("QuantizeLinear", [steps, one, none])
    return _Codes(codes, one, none, scale, body.op("Neg", [body.op("Mul", [scale, zeros])]))


def _product(body: Body, x: _Codes, weight: ir.Value, scale: ir.Value, bias: ir.Value) -> ir.Value:
    """x · W + bias; by tokens (low + scale · codes) · W + bias, where the sums of W are constants."""
    inputs = [x.codes, weight, x.scale, scale, x.zero_point]
    if x.token_low is None:
        return body.op("MatMulIntegerToFloat", [*inputs, None, bias], domain="com.microsoft")
    product = body.op("MatMulIntegerToFloat", inputs, domain="com.microsoft")
    floats = body.op("Cast", [weight], [ir.AttrInt64("to", ir.DataType.FLOAT.value)])
    rows = body.op("Constant", [], [ir.AttrInt64s("value_ints", [0])])
    sums = body.op("ReduceSum", [floats, rows], [ir.AttrInt64("keepdims", 0)])
    offset = body.op("Add", [body.op("Mul", [x.token_low, body.op("Mul", [sums, scale])]), bias])
    return body.op("Add", [body.op("Mul", [product, x.token_scale]), offset])


def _number(body: Body, value: float) -> ir.Value:
    return body.op("Constant", [], [ir.AttrFloat32("value_float", value)])


def _finished(body: Body, y: ir.Value, variant: Int8Variant, values: Mapping[str, ir.Value]) -> ir.Value:
    y = activated(body, y, variant.activation)
    if variant.residual:
        # ONNX Runtime joins an Add, not a Sum, with the LayerNormalization behind it, to a slower operator.
        return body.op("Sum", [y, values["residual"]])
    if not variant.to_codes:
        return y
    smoothed = _smoothed(body, y, values.get("y_multiplier"))
    return body.op("QuantizeLinear", [smoothed, values["y_scale"], values["y_zero_point"]])
