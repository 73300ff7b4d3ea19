"""NVIDIA TensorRT-RTX: engines for RTX and data-centre GPUs, compiled ahead of time on any machine."""

from runtimes._tensorrt.runtime import TensorRT

__all__ = ["KINDS", "OPTIONS", "RUNTIME", "SCHEMES"]

SCHEMES = ("fp32", "fp16", "bf16", "int8", "int4", "fp8", "nvfp4")
KINDS = ("encoder", "vision", "decoder", "module")
OPTIONS = ("arch", "build-timeout", "build-memory", "kv-cache")

RUNTIME = TensorRT("trt-rtx", ("tensorrt_rtx",))
