"""The lowering rules for ONNX Runtime's CUDA kernels, in order."""

from __future__ import annotations

from functools import partial

from runtimes._onnxruntime.lowering import Rule
from runtimes._onnxruntime.rules.attention import lower_attention
from runtimes._onnxruntime.rules.block_linear import lower_block_linears
from runtimes.ort_cuda.bfloat16 import refuse_without_kernel

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (lower_attention, partial(lower_block_linears, accuracy_level=0), refuse_without_kernel)
"""Block-wise weights meet activations as they are: rounding those to int8 is a way of the CPU's kernels.

CUDA has kernels for the standard `Attention` (opset 23 and 24). Of integer products it has `MatMulInteger` alone, which
wants quantizing and scaling as nodes of their own.

`GroupQueryAttention` exists there in half precision only, and its cache would have to stay on the device.
"""
