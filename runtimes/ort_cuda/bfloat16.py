"""Which nodes ONNX Runtime's CUDA provider takes in bfloat16, told before a graph is written."""

from __future__ import annotations

import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter
from toolkit.errors import UnsupportedError
from toolkit.types import Step

__all__ = ["refuse_without_kernel"]

_BFLOAT16 = ir.DataType.BFLOAT16
_KERNELS = frozenset(
    {
        "Abs", "Add", "Attention", "Cast", "Concat", "ConstantOfShape", "Div", "Erf", "Exp", "Expand",
        "Flatten", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "Identity", "If", "IsInf", "IsNaN",
        "LayerNormalization", "Loop", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "RMSNormalization",
        "ReduceSum", "Relu", "Reshape", "RotaryEmbedding", "Scan", "ScatterElements", "ScatterND", "Shape", "Sigmoid",
        "Sign", "Size", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "TensorScatter", "Tile",
        "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""The operators of opset 20 and newer with bfloat16 in the CUDA table of ONNX Runtime's docs/OperatorKernels.md.

`Constant` is a weight by the time a kernel is sought. The table lists `Attention` for opset 23 and for 24.
"""
_SINCE = {"AveragePool": 22, "Conv": 22, "HardSigmoid": 22, "HardSwish": 22}
"""Those whose kernel has bfloat16 from a later opset on."""
_NAMED = 5


def refuse_without_kernel(model: ir.Model, emit: Emitter) -> list[Step]:
    """Raise UnsupportedError that names the nodes on bfloat16 without a CUDA kernel: the CPU has none for them either.

    The last of the lowering rules; it changes nothing.
    """
    opset = model.opset_imports.get("", 0)
    bad = [node for node in model.graph.all_nodes() if _is_bfloat16(node) and not _has_kernel(node, opset)]
    if bad:
        names = ", ".join(f"{node.op_type} '{node.name}'" for node in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise UnsupportedError(
            f"ONNX Runtime's CUDA provider has no bfloat16 kernel at opset {opset} for {names}{more}",
            hint=_hint(bad, opset),
        )
    return []


def _is_bfloat16(node: ir.Node) -> bool:
    return any(value is not None and value.dtype == _BFLOAT16 for value in (*node.inputs, *node.outputs))


def _has_kernel(node: ir.Node, opset: int) -> bool:
    since = _SINCE.get(node.op_type, 0 if node.op_type in _KERNELS | {"Constant"} else None)
    return node.domain == "" and since is not None and since <= opset


def _hint(bad: list[ir.Node], opset: int) -> str:
    later = [_SINCE.get(node.op_type, 0) for node in bad]
    if min(later) > 0:
        return f"Export with --opset {max(later)} or newer."
    return "Export for ort-cuda-fp16, or for trt-bf16."
