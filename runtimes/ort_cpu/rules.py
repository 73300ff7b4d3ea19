"""The lowering rules for ONNX Runtime's CPU kernels, in order."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.lowering import Rule
from runtimes._onnxruntime.rules.attention import lower_attention
from runtimes._onnxruntime.rules.block_linear import lower_block_linears
from runtimes._onnxruntime.rules.cached_attention import lower_cached_attention
from runtimes._onnxruntime.rules.column_scales import fold_column_scales
from runtimes._onnxruntime.rules.int8_conv import fold_int8_conv_weights
from runtimes._onnxruntime.rules.int8_linear import lower_int8_linears
from runtimes._onnxruntime.rules.merge_linears import merge_linears
from runtimes._onnxruntime.rules.own_attention import use_own_attention
from runtimes._onnxruntime.rules.own_float_linear import use_float_linear
from runtimes._onnxruntime.rules.own_int8_linear import use_int8_linear
from runtimes._onnxruntime.rules.own_linear import use_block_linear
from runtimes._onnxruntime.rules.token_rows import use_token_rows
from toolkit.types import ModelSpec, Step

__all__ = ["rules_for"]

_ALWAYS: tuple[Rule, ...] = (
    lower_attention,
    use_own_attention,
    lower_block_linears,
    use_block_linear,
    lower_int8_linears,
    use_int8_linear,
    fold_int8_conv_weights,
)


def rules_for(spec: ModelSpec) -> tuple[Rule, ...]:
    """What every graph is lowered with, before that what only a language model needs, and after it what only pays in
    others, as docs/ort-lowering.md shows.

    Measured and left out: Add and RMSNormalization as one `SkipSimplifiedLayerNormalization` (as fast for one token,
    half as fast for 128); SiLU as `QuickGelu` (ONNX Runtime does that itself while loading); a tied head as
    `FusedMatMul` on the table itself (neither faster nor smaller: ONNX Runtime lets the transposed copy go).
    """
    if spec.kind != "decoder" or spec.decoder is None:
        return (*_ALWAYS, fold_column_scales, use_token_rows, use_float_linear)
    total = spec.dims.get("total_sequence")
    positions = total.max if total is not None else spec.decoder.context
    cached = partial(lower_cached_attention, positions=positions, query_lengths=_knows_query_lengths())
    return (_share, cached, merge_linears, *_ALWAYS)


def _knows_query_lengths() -> bool:
    """Whether this ONNX Runtime's `GroupQueryAttention` can be told which new tokens are padding: 1.32 and newer."""
    return tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 32)


def _share(model: ir.Model, emit: Emitter) -> list[Step]:
    """Layers compute the same cosines and sines; each is to be evaluated once."""
    CommonSubexpressionEliminationPass()(model)
    return []
