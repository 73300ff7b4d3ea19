"""Half precision for what int8 leaves in fp32: TensorRT has no fused attention in fp32, and half the traffic."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from quantize.half_cast import cast_graph
from quantize.half_plan import kept_steps, plan_half
from quantize.half_precision import Decision
from runtimes._standard.block_scales import computed, scale_makers
from runtimes._standard.bounds import bounds_of
from runtimes._standard.nodes import Writer
from toolkit.types import Samples, Step

__all__ = ["half_beside_weights", "half_elsewhere"]

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_SCALE_ERROR = 2.0**-9
"""Most relative error of a scale in fp16; normal numbers give 2^-11, scales below 1.5e-5 more."""
_NEGLIGIBLE = 2.0**-14
"""What a scale of many may lose as part of the largest."""


def half_elsewhere(model: ir.Model, samples: Samples | None = None) -> list[Step]:
    """Cast what is not int8 or int4 to fp16, where its range fits; other graphs are left as they are.

    A range fits where `samples` show it with headroom; where there are none, and for float4, where scales prove it.
    What attention hides (its scores) is bounded by samples alone: without them it is taken to fit.
    Normalisations, what came near 65504, and products with a scale that fp16 cannot hold stay fp32.
    Scales take the dtype of the tensors beside them, as TensorRT demands.
    """
    return half_beside_weights(model, samples) if any(_is_quantized(node) for node in model.graph) else []


def half_beside_weights(model: ir.Model, samples: Samples | None = None, beside: str = "int8") -> list[Step]:
    """The same for any graph in fp32, however its weights are stored; `beside` is what the log calls them."""
    _infer_dtypes(model)
    given = samples() if samples is not None and _runs_on_cpu(model.graph) else None
    plan = plan_half(model, given, bounds_of(model.graph))
    decisions = {**plan.decisions, **_imprecise_scales(model.graph), **scale_makers(model.graph)}
    casts = cast_graph(model, decisions)
    scales = _retype_scales(model)
    return [
        Step("lower", f"nodes beside {beside} in fp16", sum(each.half for each in decisions.values()), plan.basis),
        Step("lower", "scales in fp16", scales, "the dtype of the tensor beside them"),
        Step("lower", "Cast nodes added", casts),
        *kept_steps("lower", decisions),
    ]


def _is_quantized(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and "block_size" in node.attributes)


def _runs_on_cpu(graph: ir.Graph) -> bool:
    """Measuring takes ONNX Runtime's CPU, which has no float4."""
    values = (value for node in graph for value in (*node.inputs, *node.outputs))
    return all(value is None or value.dtype != ir.DataType.FLOAT4E2M1 for value in values)


def _infer_dtypes(model: ir.Model) -> None:
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass()(model)
    for node in model.graph:
        scale = node.inputs[1] if node.op_type == "DequantizeLinear" else None
        if scale is not None and scale.dtype is not None:
            node.outputs[0].dtype = scale.dtype


def _imprecise_scales(graph: ir.Graph) -> dict[ir.Node, Decision]:
    """Products one of whose scales would lose more than rounding in fp16."""
    found = {}
    for node in graph:
        sources = [value.producer() for value in node.inputs[:2] if value is not None and node.op_type in _PRODUCTS]
        for source in sources:
            if source is None or source.op_type != "DequantizeLinear" or computed(source.inputs[1]):
                continue
            if _loses(source.inputs[1]):
                found[node] = Decision(False, "scale: below what fp16 holds")
    return found


def _loses(scale: ir.Value | None) -> bool:
    if scale is None or scale.const_value is None:
        return True
    exact = scale.const_value.numpy().astype(np.float64)
    with np.errstate(over="ignore"):
        error = np.abs(exact.astype(np.float16).astype(np.float64) - exact)
    # A block whose weights are all next to nothing beside the others' may lose them.
    negligible = _NEGLIGIBLE * np.abs(exact).max(initial=0.0) if exact.ndim > 1 else 0.0
    return bool((error > np.maximum(_SCALE_ERROR * np.abs(exact), negligible)).any())


def _retype_scales(model: ir.Model) -> int:
    """Move casts out from between int8 and its neighbours: the scale's dtype says what goes in or comes out."""
    writer, count = Writer(model), 0
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear":
            count += _emit_half(writer, node)
        elif node.op_type == "QuantizeLinear":
            count += _take_half(writer, node)
    return count


def _emit_half(writer: Writer, node: ir.Node) -> bool:
    output = node.outputs[0]
    readers = list(output.consumers())
    if not readers or computed(node.inputs[1]) or any(not _casts_to(reader, ir.DataType.FLOAT16) for reader in readers):
        return False
    _use_half_scale(writer, node)
    output.dtype = ir.DataType.FLOAT16
    for cast in readers:
        ir.convenience.replace_all_uses_with(cast.outputs[0], output)
    return True


def _take_half(writer: Writer, node: ir.Node) -> bool:
    source = node.inputs[0]
    cast = source.producer() if source is not None else None
    if cast is None or not _casts_to(cast, ir.DataType.FLOAT) or cast.inputs[0] is None:
        return False
    if cast.inputs[0].dtype != ir.DataType.FLOAT16 or _loses(node.inputs[1]):
        return False
    node.replace_input_with(0, cast.inputs[0])
    _use_half_scale(writer, node)
    return True


def _casts_to(node: ir.Node, dtype: ir.DataType) -> bool:
    return bool(node.op_type == "Cast" and node.attributes.get_int("to", 0) == dtype)


def _use_half_scale(writer: Writer, node: ir.Node) -> None:
    scale = node.inputs[1]
    if scale is not None and scale.const_value is not None:
        node.replace_input_with(1, writer.constant(scale.const_value.numpy(), ir.DataType.FLOAT16))
