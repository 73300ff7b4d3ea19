"""Number types that ONNX Runtime's CPU provider lacks, computed in float32 by a rewritten form of the very graph.

ONNX Runtime 1.32 has CPU kernels for neither arithmetic in bfloat16 nor anything in float4e2m1; float8e4m3fn it has.
In float16 it computes little: it runs most operators in float32 and drops the casts between them, so that no number is
rounded and none passes 65504. That is its own engine's arithmetic, and no measure of another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from functools import partial
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from exporters.fused_attention.schema import DOMAIN, OP_TYPE
from runtimes._onnxruntime.emulation.float4 import emulate_float4
from runtimes._onnxruntime.emulation.rounding import emulate_rounding
from toolkit.errors import StageError

__all__ = ["LACKING", "ROUNDED", "emulated", "what_is_emulated"]

_HALF, _BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_RULES: Mapping[int, Callable[[ir.Model], None]] = {
    int(ir.DataType.FLOAT4E2M1): emulate_float4,
    int(_BRAIN): partial(emulate_rounding, dtype=_BRAIN),
    int(_HALF): partial(emulate_rounding, dtype=_HALF),
}
"""float4 first: what it becomes may be of 16 bits."""

ROUNDED = frozenset(_RULES)
"""All that can be emulated: a graph measured for hardware that has these types."""

LACKING = ROUNDED - {int(_HALF)}
"""What has to be emulated, or the CPU provider opens no graph that holds it."""


def what_is_emulated(dtypes: Set[int]) -> str:
    """What to say of a graph in which these of the `ROUNDED` ONNX number types are emulated; nothing for none."""
    names = [ir.DataType(dtype).name.lower() for dtype in _RULES if dtype in dtypes]
    return f"{' and '.join(names)} emulated in float32" if names else ""


def emulated(path: Path, dtypes: Set[int]) -> bytes:
    """The graph file with these number types rewritten; its weights stay in their own file.

    Raises StageError where a part of it cannot be emulated.
    """
    model = ir.load(path)
    if model.functions:
        InlinePass(criteria=_is_composed)(model)
    ShapeInferencePass()(model)
    for dtype, rule in _RULES.items():
        if dtype in dtypes:
            _apply(rule, model, path)
    return bytes(ir.to_proto(model).SerializeToString())


def _is_composed(function: ir.Function) -> bool:
    """Whether its operators are rounded one by one. Attention's are not, as in the kernels that it is made for."""
    return (function.domain, function.name) != (DOMAIN, OP_TYPE)


def _apply(rule: Callable[[ir.Model], None], model: ir.Model, path: Path) -> None:
    try:
        rule(model)
    except ValueError as error:
        raise StageError(
            "session",
            f"{path} holds numbers that ONNX Runtime's CPU lacks and that cannot be emulated: {error}",
            hint="Only graphs of this toolkit's schemes are; run it on its own runtime.",
        ) from error
