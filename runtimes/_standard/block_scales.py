"""Scales that the graph computes, as nvfp4 has them: they stay fp32, and a Cast brings what they scale to fp16.

TensorRT-RTX 1.7 still sees the float4 product behind that Cast (its plan: a gemm of FP4E2M1 and FP8 operands). A block
scale in fp16 would fall below its normal numbers wherever a tensor stays below 10.
"""

from __future__ import annotations

import onnx_ir as ir

from quantize.half_precision import Decision

__all__ = ["computed", "scale_makers"]


def computed(scale: ir.Value | None) -> bool:
    """Whether a node makes the scale, be it from constants."""
    return scale is not None and scale.producer() is not None


def scale_makers(graph: ir.Graph) -> dict[ir.Node, Decision]:
    """The nodes between a tensor and the scale that it is quantized with; all of them run in fp32."""
    found: dict[ir.Node, Decision] = {}
    for node in graph:
        if node.op_type == "QuantizeLinear" and computed(node.inputs[1]):
            pending = [node.inputs[1]]
            while pending:
                value = pending.pop()
                producer = value.producer() if value is not None and value is not node.inputs[0] else None
                if producer is not None and producer not in found:
                    found[producer] = Decision(False)
                    pending.extend(producer.inputs)
    return found
