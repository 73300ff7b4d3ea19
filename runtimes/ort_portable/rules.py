"""The lowering rules for language models on any ONNX Runtime since 1.24, in order."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.lowering import Rule
from runtimes._onnxruntime.rules.attention import lower_attention
from runtimes._onnxruntime.rules.block_linear import lower_block_linears
from runtimes._onnxruntime.rules.int8_linear import lower_int8_linears
from runtimes._onnxruntime.rules.merge_linears import merge_linears
from toolkit.types import Step

__all__ = ["RULES"]


def _share(model: ir.Model, emit: Emitter) -> list[Step]:
    """Layers compute the same cosines and sines; each is to be evaluated once."""
    CommonSubexpressionEliminationPass()(model)
    return []


RULES: tuple[Rule, ...] = (_share, merge_linears, lower_attention, lower_block_linears, lower_int8_linears)
"""Without the kernels of our own, which a browser or a phone does not have."""
