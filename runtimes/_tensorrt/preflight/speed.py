"""What parses and computes the right numbers, but not with the kernels it was quantized for."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from runtimes._standard.nodes import static_dim
from runtimes._tensorrt.preflight.finding import Finding

__all__ = ["attention_between_q_and_dq", "weights"]

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})


def weights(node: ir.Node) -> Iterator[Finding]:
    """A weight [K, N] in a form whose product does not run on it: it is dequantized by a kernel of its own."""
    if node.domain or node.op_type != "DequantizeLinear":
        return
    weight, scale = node.inputs[0], node.inputs[1]
    tensor = ir.convenience.get_const_tensor(weight)
    if weight is None or scale is None or tensor is None or len(tensor.shape) < 2 or not _feeds_product(node):
        return
    blocks = _block_count(node, scale)
    if tensor.dtype == ir.DataType.INT8 and blocks:
        problem, fix = "int8 weights in blocks are dequantized by a kernel of their own", "take one scale a channel"
        yield Finding(problem, fix, fatal=False)
    if tensor.dtype == ir.DataType.INT4 and blocks <= 1:
        problem, fix = "int4 weights not in blocks are dequantized by a kernel of their own", "take blocks of 16 to 256"
        yield Finding(problem, fix, fatal=False)
    # A float4 product is found behind its Cast (TensorRT-RTX 1.7.1: a gemm of FP4E2M1 operands).
    four = tensor.dtype == ir.DataType.FLOAT4E2M1
    if not four and any(reader.op_type == "Cast" for reader in node.outputs[0].consumers()):
        problem, fix = "a Cast keeps a weight from its product", "give the scale in the product's dtype"
        yield Finding(problem, fix, fatal=False)
    if tensor.dtype == ir.DataType.INT8:
        yield from _axis(node, scale, tuple(tensor.shape))


def _feeds_product(node: ir.Node) -> bool:
    readers = [reader for reader, _ in node.outputs[0].uses()]
    behind = [next_ for reader in readers if reader.op_type == "Cast" for next_ in reader.outputs[0].consumers()]
    return any(reader.op_type in _PRODUCTS for reader in (*readers, *behind))


def _block_count(node: ir.Node, scale: ir.Value) -> int:
    """Blocks along the axis; 0 for one scale a channel or one in all, and where it is not known."""
    if not node.attributes.get_int("block_size", 0) or scale.shape is None:
        return 0
    return static_dim(scale, node.attributes.get_int("axis", 1) % len(scale.shape)) or 0


def _axis(node: ir.Node, scale: ir.Value, shape: tuple[int, ...]) -> Iterator[Finding]:
    """A scale per input channel builds, but the product then silently runs in half precision."""
    if scale.shape is None or len(scale.shape) != 1:
        return
    axis = node.attributes.get_int("axis", 1) % len(shape)
    for reader in node.outputs[0].consumers():
        wanted = _output_axis(reader, len(shape))
        if wanted is not None and axis != wanted and shape[axis] > 1:
            problem = f"scales lie along axis {axis} of the weight; the output channels are axis {wanted}"
            yield Finding(problem, "take one scale an output channel, else nothing runs in int8", fatal=False)


def _output_axis(reader: ir.Node, rank: int) -> int | None:
    if reader.op_type == "Conv":
        return 0
    if reader.op_type == "Gemm":
        return 0 if reader.attributes.get_int("transB", 0) else 1
    return rank - 1 if reader.op_type == "MatMul" else None


def attention_between_q_and_dq(node: ir.Node) -> Iterator[Finding]:
    """An `Attention` with dequantized inputs."""
    if node.domain or node.op_type != "Attention":
        return
    makers = [value.producer() for value in node.inputs[:3] if value is not None]
    if any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
        problem = "Q/DQ around an Attention: it stays in floating point"
        yield Finding(problem, "write it as MatMul and Softmax, with Q/DQ on scores and values", fatal=False)
