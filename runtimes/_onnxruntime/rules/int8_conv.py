"""Convolutions with int8 weights: the weights go back to fp32, once, at lowering.

ONNX Runtime's integer convolution wants its output quantized as well, which costs accuracy; the patch convolution
is under one per cent of a ViT's arithmetic. The rounding of weights and inputs stays in the numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from runtimes._onnxruntime.emit import Emitter
from toolkit.types import Step

__all__ = ["fold_int8_conv_weights"]


def fold_int8_conv_weights(model: ir.Model, emit: Emitter) -> list[Step]:
    """Replace `DequantizeLinear` of a constant Conv weight by the fp32 weight that it stands for."""
    folded = 0
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        weight = node.inputs[1] if node.op_type == "Conv" else None
        dequantize = weight.producer() if weight is not None else None
        if weight is None or dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        constants = [value.const_value for value in dequantize.inputs if value is not None]
        if all(tensor is not None for tensor in constants):
            arrays = [tensor.numpy() for tensor in constants if tensor is not None]
            numbers = _dequantized(dequantize.attributes.get_int("axis", 1), *arrays)
            replacement = emit.initializer(ir.tensor(numbers), f"{weight.name}.fp32")
            node.replace_input_with(1, replacement)
            folded += 1
    if not folded:
        return []
    return [Step("lower", "int8 Conv weights folded to fp32", folded, "the integer Conv would quantize its output")]


def _dequantized(
    axis: int, integers: NDArray[Any], scales: NDArray[Any], zero_points: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    along = [-1 if index == axis else 1 for index in range(integers.ndim)]
    zeros = np.int32(0) if zero_points is None else zero_points.astype(np.int32)
    offset = zeros.reshape(along) if zeros.ndim else zeros
    steps = scales.reshape(along) if scales.ndim else scales
    centred = integers.astype(np.int32) - offset
    return (centred.astype(np.float32) * steps.astype(np.float32)).astype(np.float32)
