"""The lowering rules for phones, in order: standard operators of one fixed shape, as their providers take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.lowering import Rule
from runtimes._onnxruntime.rules.int8_conv import fold_int8_conv_weights
from runtimes._onnxruntime.rules.lookup import look_up_integers
from runtimes._standard.attention import lower_attention
from runtimes._standard.functions import inline_functions
from runtimes.ort_mobile.fixed import fix_shapes
from runtimes.ort_mobile.operators import replace_expands, replace_gathers, replace_norms
from runtimes.ort_mobile.widen import widen_arithmetic
from toolkit.types import ModelSpec, Step

__all__ = ["rules_for"]

_DECOMPOSED = "Core ML, NNAPI and XNNPACK take no Attention"


def rules_for(spec: ModelSpec) -> tuple[Rule, ...]:
    """What a graph is lowered with; `spec` gives the sizes of its dimensions."""
    return (
        look_up_integers,
        _alone(partial(lower_attention, decomposed=True), _DECOMPOSED),
        _alone(inline_functions, "an .ort file has no functions"),
        fold_int8_conv_weights,
        _alone(partial(fix_shapes, spec=spec)),
        widen_arithmetic,
        replace_gathers,
        replace_expands,
        replace_norms,
    )


def _alone(rule: Callable[[ir.Model], list[Step]], reason: str = "") -> Rule:
    """A rule that makes its nodes itself, and why it is applied here, where that differs."""

    def apply(model: ir.Model, emit: Emitter) -> list[Step]:
        return [replace(step, reason=reason or step.reason) for step in rule(model)]

    return apply
