"""NVIDIA TensorRT (10.14 or newer) on a GPU; elsewhere its engines are compiled ahead of time through TensorRT-RTX."""

from runtimes._tensorrt.runtime import TensorRT

__all__ = ["KINDS", "OPTIONS", "RUNTIME", "SCHEMES"]

SCHEMES = ("fp32", "fp16", "bf16", "int8", "int4", "fp8", "nvfp4")
KINDS = ("encoder", "vision", "decoder", "module")
OPTIONS = ("arch", "build-timeout", "build-memory", "kv-cache")

RUNTIME = TensorRT("trt", ("tensorrt", "tensorrt_rtx"))
