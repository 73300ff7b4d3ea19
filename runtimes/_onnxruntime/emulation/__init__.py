"""Number types that ONNX Runtime's CPU provider lacks, computed in float32 by a rewritten form of the very graph.

ONNX Runtime 1.32 has CPU kernels for neither arithmetic in bfloat16 nor anything in float4e2m1; float8e4m3fn it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from runtimes._onnxruntime.emulation.bfloat16 import emulate_bfloat16
from runtimes._onnxruntime.emulation.float4 import emulate_float4
from toolkit.errors import StageError

__all__ = ["emulated", "what_is_emulated"]

_RULES: Mapping[int, Callable[[ir.Model], None]] = {
    int(ir.DataType.FLOAT4E2M1): emulate_float4,
    int(ir.DataType.BFLOAT16): emulate_bfloat16,
}
"""float4 first: what it becomes may be bfloat16."""


def what_is_emulated(dtypes: Set[int]) -> str:
    """What to say of a graph with these ONNX number types; nothing where the CPU provider has them all."""
    names = [ir.DataType(dtype).name.lower() for dtype in _RULES if dtype in dtypes]
    return f"{' and '.join(names)} emulated in float32" if names else ""


def emulated(path: Path, dtypes: Set[int]) -> bytes:
    """The graph file rewritten; its weights stay in their own file.

    Raises StageError where a part of it cannot be emulated.
    """
    model = ir.load(path)
    if model.functions:
        InlinePass()(model)
    ShapeInferencePass()(model)
    for dtype, rule in _RULES.items():
        if dtype in dtypes:
            _apply(rule, model, path)
    return bytes(ir.to_proto(model).SerializeToString())


def _apply(rule: Callable[[ir.Model], None], model: ir.Model, path: Path) -> None:
    try:
        rule(model)
    except ValueError as error:
        raise StageError(
            "session",
            f"{path} holds numbers that ONNX Runtime's CPU lacks and that cannot be emulated: {error}",
            hint="Only graphs of this toolkit's schemes are; run it on its own runtime.",
        ) from error
