"""The float32 Linears of domain `toolkit.cpu`: their names, their inputs, and what they mean in stock operators."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.function import Body, activated

__all__ = ["FLOAT_LINEAR", "FloatVariant", "float_function"]

FLOAT_LINEAR = "FloatLinear"
"""How the names of all of them begin."""


@dataclass(frozen=True, slots=True)
class FloatVariant:
    """One of the operators: y [M, N] = activation(x · W + bias), or x · W + bias + residual.

    Inputs in this order: x float [M, K]; W float [K, N] and bias float [N], both constant; residual float [M, N] if
    `residual`. The activation is one of `function.ACTIVATIONS` or empty.
    """

    activation: str = ""
    residual: bool = False

    @property
    def name(self) -> str:
        """The operator's name, as `float_linear.cpp` has it."""
        return f"{FLOAT_LINEAR}{self.activation}{'Residual' if self.residual else ''}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the inputs are called in the function."""
        return ("x", "W", "bias", "residual")[: 4 if self.residual else 3]


def float_function(variant: FloatVariant, opset: int) -> ir.Function:
    """The body of one operator: `Gemm` and what follows it, for opset 20 or later."""
    values = [ir.Value(name=name) for name in variant.inputs]
    body = Body()
    y = activated(body, body.op("Gemm", values[:3]), variant.activation)
    if variant.residual:
        y = body.op("Sum", [y, values[3]])
    graph = ir.Graph(values, [y], nodes=body.nodes, opset_imports={"": opset}, name=variant.name)
    return ir.Function(DOMAIN, variant.name, graph=graph, attributes=[])
