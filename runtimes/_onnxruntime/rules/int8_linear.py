"""Q/DQ Linears, static or dynamic, to `com.microsoft::MatMulIntegerToFloat` with u8 activations and s8 weights.

That pair is what ONNX Runtime has fast kernels for on x86. A symmetric s8 activation becomes u8 by moving both its
integers and its zero point up by 128, which changes no number: (q + 128) - 128 = q.

Where each token has a scale and a zero point of its own, [.., 1], the product holds them in the places of the two
scalars. No kernel of ONNX Runtime takes it so: `own_int8_linear` makes an operator of it, whose function says how.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.rules.linear_parts import MOST_INPUTS
from runtimes._onnxruntime.rules.token_rounding import token_readers
from toolkit.errors import StageError
from toolkit.types import Step

__all__ = ["lower_int8_linears", "quantized_linears"]

_FUSED = "MatMulIntegerToFloat"
_SHIFT = 128


@dataclass(frozen=True, slots=True, eq=False)
class _Weight:
    """int8 [K, N] with scales [N] or []; zero points are zero."""

    integers: ir.Value
    scales: ir.Value


@dataclass(frozen=True, slots=True, eq=False)
class _Activation:
    """u8 integers with their scale and zero point, both [], or [.., 1] where each token has its own."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


def quantized_linears(model: ir.Model) -> list[ir.Node]:
    """Every MatMul and Gemm whose weight is an int8 constant behind `DequantizeLinear`."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [node for node in nodes if node.op_type in {"MatMul", "Gemm"} and _weight_node(node) is not None]


def lower_int8_linears(model: ir.Model, emit: Emitter) -> list[Step]:
    """Replace every quantized Linear, or raise StageError that names the first one that does not fit and why."""
    linears = quantized_linears(model)
    rule = _Rule(emit)
    for node in linears:
        rule.apply(node)
    done = sum(node.op_type == _FUSED for node in ir.traversal.RecursiveGraphIterator(model.graph))
    if done != len(linears):
        raise StageError(
            "lower", f"{len(linears)} quantized Linears went in and {done} came out", hint="This is a bug."
        )
    if not linears:
        return []
    return [
        Step("lower", f"quantized Linear -> {_FUSED}", done, "u8 activations, s8 weights, fp32 out"),
        Step("lower", "biases taken into the product", rule.biases),
        Step("lower", "activation quantizations", rule.activations, "one for all Linears that read the tensor"),
    ]


class _Rule:
    def __init__(self, emit: Emitter) -> None:
        self._emit = emit
        self._shared: dict[Hashable, _Activation] = {}
        self._weights: dict[tuple[int, bool], _Weight] = {}
        self.biases = 0

    @property
    def activations(self) -> int:
        return len(self._shared)

    def apply(self, node: ir.Node) -> None:
        _refuse_scaled_gemm(node)
        weight, activation = self._weight(node), self._activation(node)
        bias, last = _bias(node)
        inputs = [
            activation.integers,
            weight.integers,
            activation.scale,
            weight.scales,
            activation.zero_point,
            None,
            bias,
        ]
        inputs = inputs if bias is not None else inputs[:5]
        self.biases += bias is not None
        old = last.outputs[0]
        # Just before the last node, so that a bias made between the two is there already.
        fused = self._emit.before(last, _FUSED, inputs, domain="com.microsoft", like=old)
        self._emit.replace(old, fused.outputs[0])
        for dead in dict.fromkeys((last, node)):
            _remove(dead)

    def _weight(self, node: ir.Node) -> _Weight:
        dequantize = _weight_node(node)
        if dequantize is None:
            raise _refusal(node, "its weight is not an int8 constant")
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        key = (id(dequantize), transposed)
        if key not in self._weights:
            self._weights[key] = self._read_weight(node, dequantize, transposed)
        return self._weights[key]

    def _read_weight(self, node: ir.Node, dequantize: ir.Node, transposed: bool) -> _Weight:
        integers, scales = dequantize.inputs[0], dequantize.inputs[1]
        if integers is None or scales is None or integers.const_value is None or scales.const_value is None:
            raise _refusal(node, "its weight or scales are not constants")
        _check_weight(node, dequantize, integers, scales, output_axis=0 if transposed else 1)
        if not transposed:
            return _Weight(integers, scales)
        return _Weight(self._transposed(integers), scales)

    def _transposed(self, integers: ir.Value) -> ir.Value:
        source = integers.const_value
        if source is None:
            raise ValueError(f"{integers.name} is not a constant")
        rows, columns = source.shape
        turned = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(source.numpy().T)), ir.DataType.INT8, ir.Shape([columns, rows])
        )
        return self._emit.initializer(turned, f"{integers.name}.transposed")

    def _activation(self, node: ir.Node) -> _Activation:
        dequantize = _producer(node.inputs[0], "DequantizeLinear")
        quantized = dequantize.inputs[0] if dequantize is not None else None
        if dequantize is None or quantized is None:
            raise _refusal(node, "its activation is not quantized")
        scale, zero_point = dequantize.inputs[1], _optional(dequantize, 2)
        if scale is None:
            raise _refusal(node, "its activation has no scale")
        dynamic = _producer(quantized, "DynamicQuantizeLinear")
        if dynamic is not None:
            return self._dynamic(dynamic)
        quantize = _producer(quantized, "QuantizeLinear")
        if quantize is not None and token_readers(quantize):
            return self._tokens(node, quantize)
        return self._static(node, quantize, scale, zero_point)

    def _dynamic(self, quantize: ir.Node) -> _Activation:
        found = _Activation(*quantize.outputs[:3])
        return self._shared.setdefault(("dynamic", id(quantize.inputs[0])), found)

    def _tokens(self, node: ir.Node, quantize: ir.Node) -> _Activation:
        source, scale, zero_point = quantize.inputs[:3]
        if quantize.attributes.get_int("block_size", 0) > MOST_INPUTS or scale is None or zero_point is None:
            raise _refusal(node, f"it measures each token's range and reads more than {MOST_INPUTS} inputs")
        found = _Activation(quantize.outputs[0], scale, zero_point)
        return self._shared.setdefault(("token", id(source)), found)

    def _static(
        self, node: ir.Node, quantize: ir.Node | None, scale: ir.Value, zero_point: ir.Value | None
    ) -> _Activation:
        source = quantize.inputs[0] if quantize is not None else None
        if quantize is None or source is None:
            raise _refusal(node, "its activation does not come from QuantizeLinear or DynamicQuantizeLinear")
        step, offset = _array(scale), _array(zero_point)
        if step is None or step.size != 1 or (zero_point is not None and offset is None):
            raise _refusal(node, "its activation needs one constant scale and zero point")
        zero = _as_u8(node, offset)
        key = ("static", id(source), step.tobytes(), int(zero))
        if key not in self._shared:
            scalar = self._emit.constant(step.reshape(()).astype(np.float32))
            offset_u8 = self._emit.constant(zero)
            made = self._emit.before(quantize, "QuantizeLinear", [source, scalar, offset_u8]).outputs[0]
            made.shape, made.dtype = source.shape, ir.DataType.UINT8
            self._shared[key] = _Activation(made, scalar, offset_u8)
        return self._shared[key]


def _as_u8(node: ir.Node, zero_point: NDArray[Any] | None) -> NDArray[np.uint8]:
    if zero_point is None or zero_point.dtype == np.uint8:
        return np.asarray(0 if zero_point is None else int(zero_point.reshape(())), np.uint8)
    if zero_point.dtype != np.int8:
        raise _refusal(node, f"its activation is {zero_point.dtype}, not int8 or uint8")
    return np.asarray(int(zero_point.reshape(())) + _SHIFT, np.uint8)


def _check_weight(
    node: ir.Node, dequantize: ir.Node, integers: ir.Value, scales: ir.Value, *, output_axis: int
) -> None:
    zero_points = _optional(dequantize, 2)
    numbers = _array(zero_points)
    if zero_points is not None and (numbers is None or numbers.any()):
        raise _refusal(node, "its weight is not symmetric: the zero points are not all zero")
    axis = dequantize.attributes.get_int("axis", 1) % 2
    count = scales.const_value.size if scales.const_value is not None else 0
    per_channel = count > 1 or (scales.shape is not None and scales.shape.rank() == 1)
    if per_channel and axis != output_axis:
        raise _refusal(node, "its weight scales run along the inputs, not the output channels")
    if integers.dtype != ir.DataType.INT8 or dequantize.attributes.get_int("block_size", 0):
        raise _refusal(node, f"its weight is {integers.dtype} or quantized in blocks, not int8 per channel")


def _refuse_scaled_gemm(node: ir.Node) -> None:
    if node.op_type != "Gemm":
        return
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if factors != [1.0, 1.0] or node.attributes.get_int("transA", 0):
        raise _refusal(node, "it scales its product (alpha, beta) or transposes its input")


def _bias(node: ir.Node) -> tuple[ir.Value | None, ir.Node]:
    """The bias [N] that can be taken into the product, and the last node of the Linear."""
    if node.op_type == "Gemm":
        bias = _optional(node, 2)
        if bias is not None and not _is_channel_vector(bias, node.outputs[0]):
            raise _refusal(node, "its bias is not one number an output channel")
        return bias, node
    uses = node.outputs[0].uses()
    adds = [use for use in uses if use.node.op_type == "Add"]
    if len(uses) != 1 or not adds or node.outputs[0].is_graph_output():
        return None, node
    bias = adds[0].node.inputs[1 - adds[0].idx]
    if bias is None or not bias.is_initializer() or not _is_channel_vector(bias, node.outputs[0]):
        return None, node
    return bias, adds[0].node


def _is_channel_vector(bias: ir.Value, product: ir.Value) -> bool:
    if bias.shape is None or product.shape is None or bias.shape.rank() != 1:
        return False
    return bool(bias.shape[0] == product.shape[-1])


def _weight_node(node: ir.Node) -> ir.Node | None:
    dequantize = _producer(_optional(node, 1), "DequantizeLinear")
    source = dequantize.inputs[0] if dequantize is not None else None
    return dequantize if source is not None and source.is_initializer() else None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _array(value: ir.Value | None) -> NDArray[Any] | None:
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def _remove(node: ir.Node) -> None:
    if node.graph is not None:
        node.graph.remove(node, safe=True)


def _refusal(node: ir.Node, reason: str) -> StageError:
    return StageError(
        "lower",
        f"quantized {node.op_type} '{node.name}' has no int8 kernel in ONNX Runtime: {reason}",
        hint="Leave it out of the scheme (exclude), or use per-channel symmetric int8 weights.",
    )
