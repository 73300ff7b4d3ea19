"""PyTorch → canonical ONNX: fused attention by construction, one file with external weights."""

__all__ = ["DEFAULT_OPSET", "OPSETS", "UNFUSED"]

DEFAULT_OPSET = 23
OPSETS = range(20, 26)
"""20 is the first with Gelu; torch 2.13's exporter writes no newer than 25."""

UNFUSED = "attention modules left unfused"
"""The step whose reason lists the modules that `--allow-unfused` let through."""
