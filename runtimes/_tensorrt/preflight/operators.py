"""Operators and opsets that TensorRT's parser knows."""

from __future__ import annotations

from collections.abc import Iterator

import onnx.defs
import onnx_ir as ir

from runtimes._standard.nodes import static_dim
from runtimes._tensorrt.preflight.finding import Finding

__all__ = ["FOREIGN", "UNSUPPORTED", "operators", "opset"]

_OPSETS = range(7, 28)
_STANDARD = ("", "ai.onnx")
_INTEGER = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"})
UNSUPPORTED = _INTEGER | frozenset(
    {
        "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
        "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "CumProd", "DFT", "DeformConv", "Det",
        "ImageDecoder", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss",
        "Optional", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceAt", "SequenceConstruct",
        "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap",
        "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU",
        "TfIdfVectorizer", "Unique",
    }
)  # fmt: skip
"""Operators of ONNX that TensorRT-RTX 1.7.1 has no importer for, as its `supports_operator` says."""
FOREIGN = frozenset(
    {"GroupQueryAttention", "MatMulNBits", "MultiHeadAttention", "QMoE", "SkipSimplifiedLayerNormalization"}
)
"""Operators of ONNX Runtime that it has an importer for, with limits of its own."""


def opset(model: ir.Model) -> Iterator[Finding]:
    """The ONNX version that the model imports."""
    version = model.opset_imports.get("", 0)
    if version < _OPSETS[0]:
        yield Finding(f"ONNX opset {version}; the parser takes {_OPSETS[0]} to {_OPSETS[-1]}", "export with --opset 23")
    if version > _OPSETS[-1]:
        problem = f"ONNX opset {version} is read as if it were {_OPSETS[-1]}"
        yield Finding(problem, "export with --opset 23", fatal=False)


def operators(node: ir.Node) -> Iterator[Finding]:
    """What is wrong with the operator itself."""
    if node.domain not in _STANDARD:
        yield _foreign(node)
    elif node.op_type in _INTEGER:
        problem = "integer operators do not parse"
        yield Finding(problem, "write int8 as QuantizeLinear and DequantizeLinear (scheme int8)")
    elif node.op_type in UNSUPPORTED:
        yield Finding("TensorRT has no such operator", "write the module with other operations")
    elif node.op_type == "TensorScatter":
        yield from _cache_update(node)


def _cache_update(node: ir.Node) -> Iterator[Finding]:
    """TensorRT writes the buffer in place, so it must be the caller's own, and as long in every profile."""
    cache, written = node.inputs[0], node.outputs[0]
    if node.attributes.get_string("mode", "linear") != "linear":
        yield Finding("only the mode linear is taken", "write to a cache that does not wrap around")
    if cache is not None and not cache.is_graph_input():
        yield Finding("the cache is no input of the graph", "feed it in the dtype and shape that the node reads")
    if not written.is_graph_output():
        yield Finding("the written cache is no output of the graph", "make it one, without a cast")
    if cache is not None and cache.shape is not None and static_dim(cache, node.attributes.get_int("axis", -2)) is None:
        yield Finding("the length of the cache is not fixed", "give the buffer a fixed number of positions")


def _foreign(node: ir.Node) -> Finding:
    fix = "write it in standard operators, or as a function that is inlined"
    if onnx.defs.has(node.op_type):
        return Finding(f"the domain is ignored: it is read as ONNX's {node.op_type}", fix)
    if node.op_type in FOREIGN:
        return Finding("only standard operators are proven; TensorRT takes some forms of this one", fix)
    return Finding("only standard operators parse", fix)
