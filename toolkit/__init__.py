"""Transformers from PyTorch to verified engines."""

__version__ = "0.1.0"
