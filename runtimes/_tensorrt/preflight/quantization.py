"""Q and DQ: symmetric int8, int4 and fp8 with constant zero points, one dtype a product."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from runtimes._tensorrt.preflight.finding import Finding

__all__ = ["quantization"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_SIGNED = "quantize to int8 with zero point 0"


def quantization(node: ir.Node) -> Iterator[Finding]:
    """What is wrong with a Q or a DQ."""
    if node.domain or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    source, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    yield from _zero_point(node, zero)
    if node.op_type == "QuantizeLinear":
        return
    if source is not None and source.dtype == ir.DataType.INT32:
        yield Finding("INT32 is not dequantized; int8 is", "fold the bias into a float constant")
    if source is not None and source.dtype == ir.DataType.UINT8 and zero is None:
        yield Finding("UINT8 is not dequantized; int8 is", _SIGNED)
    yield from _dtype_of_product(node, scale)
    yield from _dtype_of_blocks(node, scale)


def _zero_point(node: ir.Node, zero: ir.Value | None) -> Iterator[Finding]:
    if zero is None:
        if node.op_type == "QuantizeLinear" and not node.attributes.get_int("output_dtype", 0):
            yield Finding("no zero point: ONNX reads that as uint8, TensorRT as int8", "give an int8 zero point of 0")
        return
    if zero.dtype == ir.DataType.UINT8:
        yield Finding("uint8 is read as int8: wrong numbers, or refused", _SIGNED)
    numbers = _constant(zero)
    if numbers is None:
        yield Finding("the zero point is computed; it must be a constant", "fold it")
    elif zero.dtype != ir.DataType.UINT8 and np.any(numbers != 0):
        yield Finding("the zero point is not 0", "quantize symmetrically")


def _constant(value: ir.Value) -> np.ndarray | None:
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if tensor is None:
        return None
    numbers: np.ndarray = tensor.numpy()
    return numbers


def _dtype_of_product(node: ir.Node, scale: ir.Value | None) -> Iterator[Finding]:
    """Both sides of a product must have one dtype, and a dequantized side has its scale's."""
    given = node.attributes.get_int("output_dtype", 0)
    made = ir.DataType(given) if given else (scale.dtype if scale is not None else None)
    for reader in node.outputs[0].consumers():
        others = [value for value in reader.inputs if value is not None and value is not node.outputs[0]]
        for other in others if reader.op_type in _PRODUCTS else []:
            if made in _FLOATS and other.dtype in _FLOATS and made != other.dtype:
                problem = f"the scale is {made.name}, the tensor beside it {other.dtype.name}"
                yield Finding(problem, f"give the scale as {other.dtype.name}")


def _dtype_of_blocks(node: ir.Node, scale: ir.Value | None) -> Iterator[Finding]:
    given = node.attributes.get_int("output_dtype", 0)
    blocked = node.attributes.get_int("block_size", 0)
    if given and blocked and scale is not None and scale.dtype is not None and given != scale.dtype:
        name = ir.DataType(given).name
        yield Finding(f"scales of blocks are {scale.dtype.name}, the output {name}", f"give the scales as {name}")
