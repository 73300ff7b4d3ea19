"""What TensorRT's parser refuses, or worse misreads, found and named before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from exporters.canonical import module_path
from runtimes._tensorrt.nodes import origin, same_dim, static_dim
from toolkit.errors import UnsupportedError

__all__ = ["check", "objections"]

_SHOWN = 5
_OPSETS = range(7, 28)
_INTEGER_ONLY = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"})
_TYPES = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.INT64,
        ir.DataType.INT32,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.BOOL,
    }
)


def check(model: ir.Model) -> None:
    """Raises UnsupportedError that names the nodes, their modules and what is wrong with each."""
    found = list(objections(model))
    if not found:
        return
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise UnsupportedError(
        f"TensorRT cannot take this graph: {'; '.join(found[:_SHOWN])}{more}",
        hint="The scheme or the model decides these nodes: try another scheme, or the target ort-cpu.",
    )


def objections(model: ir.Model) -> Iterator[str]:
    """Each thing that does not parse, or would parse to something else, as one line."""
    if model.opset_imports.get("", 0) not in _OPSETS:
        yield f"ONNX opset {model.opset_imports.get('', 0)}; the parser takes {_OPSETS[0]} to {_OPSETS[-1]}"
    for domain, name, _ in model.functions:
        yield f"function {domain}::{name}: functions must be inlined"
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype is not None and value.dtype not in _TYPES:
            yield f"input or output '{value.name}': {value.dtype.name} is not a type of TensorRT's"
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for rule in _RULES:
            yield from (f"{_where(node)}: {problem}" for problem in rule(node))


def _where(node: ir.Node) -> str:
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    module = module_path(node)
    return f"{kind} '{node.name}'" + (f" of {module}" if module else "")


def _domain(node: ir.Node) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield "only standard operators parse"
    if node.domain in ("", "ai.onnx") and node.op_type in _INTEGER_ONLY:
        yield "integer operators do not parse; int8 is written as QuantizeLinear and DequantizeLinear"


def _attention(node: ir.Node) -> Iterator[str]:
    if node.domain or node.op_type != "Attention":
        return
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    query, key, value, mask = inputs[:4]
    if query is None or key is None or value is None:
        yield "a query, a key or a value is missing"
        return
    yield from _attention_extras(node, inputs[4:])
    yield from _attention_sizes(node, query, key, value)
    if mask is not None:
        yield from _attention_mask(node, query, mask)


def _attention_extras(node: ir.Node, rest: list[ir.Value | None]) -> Iterator[str]:
    if any(value is not None for value in rest[:2]) or any(output.name for output in node.outputs[1:]):
        yield "past and present keys on the node are refused"
    if rest[2] is not None:
        yield "nonpad_kv_seqlen is ignored without a word"
    if node.attributes.get_float("softcap", 0.0):
        yield "softcap is refused"


def _attention_sizes(node: ir.Node, query: ir.Value, key: ir.Value, value: ir.Value) -> Iterator[str]:
    sizes = static_dim(query, 3), static_dim(value, 3)
    if None not in sizes and sizes[0] != sizes[1]:
        yield f"head size {sizes[1]} of the values differs from {sizes[0]} of the queries"
    if origin(query) is origin(key):
        yield "queries and keys are one tensor, which crashes the builder"
    if node.attributes.get_int("is_causal", 0) and not same_dim(query, key, 2):
        yield "is_causal with other than as many keys as queries is read as upper-left aligned"


def _attention_mask(node: ir.Node, query: ir.Value, mask: ir.Value) -> Iterator[str]:
    if node.attributes.get_int("is_causal", 0):
        yield "a mask together with is_causal is refused"
    if mask.dtype not in (None, ir.DataType.BOOL) and query.dtype is not None and mask.dtype != query.dtype:
        name = mask.dtype.name if mask.dtype else "untyped"
        yield f"the mask is {name}; it must be bool or {query.dtype.name}, as the queries"


def _quantization(node: ir.Node) -> Iterator[str]:
    if node.domain or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    source, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    yield from _zero_point(node, zero)
    if node.op_type == "QuantizeLinear":
        yield from _scale_type(source, scale)
        return
    if source is not None and source.dtype in (ir.DataType.INT32, ir.DataType.UINT8):
        yield f"{source.dtype.name} is not dequantized; int8 is"
    for reader in node.outputs[0].consumers():
        others = [value for value in reader.inputs if value is not None and value is not node.outputs[0]]
        if reader.op_type in ("MatMul", "Gemm", "Conv"):
            yield from (line for other in others for line in _scale_type(other, scale))
    yield from _weight_axis(node)


def _zero_point(node: ir.Node, zero: ir.Value | None) -> Iterator[str]:
    if zero is None:
        if node.op_type == "QuantizeLinear" and not node.attributes.get_int("output_dtype", 0):
            yield "no zero point: ONNX reads that as uint8"
        return
    if zero.dtype == ir.DataType.UINT8:
        yield "uint8 is read as int8: wrong numbers"
    if zero.const_value is None:
        yield "the zero point is computed; it must be a constant"
    elif np.any(zero.const_value.numpy() != 0):
        yield "the zero point is not 0"


def _scale_type(tensor: ir.Value | None, scale: ir.Value | None) -> Iterator[str]:
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    if tensor is None or scale is None or tensor.dtype not in floats or scale.dtype is None:
        return
    if tensor.dtype != scale.dtype:
        yield f"the scale is {scale.dtype.name}, the tensor beside it {tensor.dtype.name}"


def _weight_axis(node: ir.Node) -> Iterator[str]:
    """A scale per input channel builds, but the product then silently runs in half precision."""
    weight, scale = node.inputs[0], node.inputs[1]
    if weight is None or scale is None or weight.const_value is None or scale.shape is None or len(scale.shape) != 1:
        return
    rank = len(weight.const_value.shape)
    axis = node.attributes.get_int("axis", 1) % rank
    for reader in node.outputs[0].consumers():
        wanted = _output_axis(reader, rank)
        if wanted is not None and axis != wanted and weight.const_value.shape[axis] > 1:
            yield f"scales lie along axis {axis} of the weight; the output channels are axis {wanted}"


def _output_axis(reader: ir.Node, rank: int) -> int | None:
    if reader.op_type == "Conv":
        return 0
    if reader.op_type == "Gemm":
        return 0 if reader.attributes.get_int("transB", 0) else 1
    return rank - 1 if reader.op_type == "MatMul" else None


_RULES: tuple[Callable[[ir.Node], Iterator[str]], ...] = (_domain, _attention, _quantization)
