"""The int8 Linears of domain `toolkit.cpu`: their names, their inputs, and what they mean in stock operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.function import Body, activated

__all__ = ["INT8_LINEAR", "Int8Variant", "int8_function"]

INT8_LINEAR = "Int8Linear"
"""How the names of all of them begin."""


@dataclass(frozen=True, slots=True)
class Int8Variant:
    """One of the operators: y = activation(x · W + bias) [+ residual], rounded to uint8 or not.

    Inputs in this order, all but `x` and `residual` constants:
    x float [.., K] (`of_codes`: uint8); x_multiplier float [K] if `smoothed`; x_scale float [], x_zero_point uint8 [];
    W int8 [K, N], W_scale float [N], bias float [N], three times if `qkv`; residual float [.., N] if `residual`;
    y_multiplier float [N] if `smoothed_codes`; y_scale float [], y_zero_point uint8 [] if `to_codes`.
    """

    qkv: bool = False
    smoothed: bool = False
    of_codes: bool = False
    activation: str = ""
    residual: bool = False
    to_codes: bool = False
    smoothed_codes: bool = False

    @property
    def name(self) -> str:
        """The operator's name, as `int8_linear.cpp` composes it."""
        form = "Smoothed" if self.smoothed else "OfCodes" if self.of_codes else ""
        codes = "ToSmoothedCodes" if self.smoothed_codes else "ToCodes" if self.to_codes else ""
        result = "Residual" if self.residual else codes
        return f"{INT8_LINEAR}{'Qkv' if self.qkv else ''}{form}{self.activation}{result}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the inputs are called in the function."""
        x = ("x", *(("x_multiplier",) if self.smoothed else ()), "x_scale", "x_zero_point")
        weights = tuple(f"{name}{i}" for i in range(3 if self.qkv else 1) for name in ("W", "W_scale", "bias"))
        codes = ("y_multiplier", "y_scale", "y_zero_point")[0 if self.smoothed_codes else 1 :]
        return (*x, *weights, *(("residual",) if self.residual else ()), *(codes if self.to_codes else ()))


def int8_function(variant: Int8Variant, opset: int) -> ir.Function:
    """The body of one operator: `QuantizeLinear` and `com.microsoft::MatMulIntegerToFloat`, for opset 20 or later."""
    values = {name: ir.Value(name=name) for name in variant.inputs}
    body = Body()
    codes = values["x"]
    if not variant.of_codes:
        codes = _rounded(body, codes, [values.get(f"x_{part}") for part in ("multiplier", "scale", "zero_point")])
    outputs = [_product(body, codes, values, i) for i in range(3 if variant.qkv else 1)]
    if not variant.qkv:
        outputs = [_finished(body, outputs[0], variant, values)]
    opsets = {"": opset, "com.microsoft": 1}
    graph = ir.Graph(list(values.values()), outputs, nodes=body.nodes, opset_imports=opsets, name=variant.name)
    return ir.Function(DOMAIN, variant.name, graph=graph, attributes=[])


def _rounded(body: Body, x: ir.Value, parts: Sequence[ir.Value | None]) -> ir.Value:
    multiplier, scale, zero_point = parts
    smoothed = x if multiplier is None else body.op("Mul", [x, multiplier])
    return body.op("QuantizeLinear", [smoothed, scale, zero_point])


def _product(body: Body, codes: ir.Value, values: dict[str, ir.Value], index: int) -> ir.Value:
    weight, scale, bias = (values[f"{name}{index}"] for name in ("W", "W_scale", "bias"))
    inputs = [codes, weight, values["x_scale"], scale, values["x_zero_point"], None, bias]
    return body.op("MatMulIntegerToFloat", inputs, domain="com.microsoft")


def _finished(body: Body, y: ir.Value, variant: Int8Variant, values: dict[str, ir.Value]) -> ir.Value:
    y = activated(body, y, variant.activation)
    if variant.residual:
        # ONNX Runtime joins an Add, not a Sum, with the LayerNormalization behind it, to a slower operator.
        return body.op("Sum", [y, values["residual"]])
    if not variant.to_codes:
        return y
    return _rounded(body, y, [values.get(f"y_{part}") for part in ("multiplier", "scale", "zero_point")])
