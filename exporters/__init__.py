"""PyTorch → canonical ONNX: fused attention by construction, one file with external weights."""

__all__ = ["UNFUSED"]

UNFUSED = "attention modules left unfused"
"""The step whose reason lists the modules that `--allow-unfused` let through."""
