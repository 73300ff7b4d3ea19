"""Lowering rules: each rewrites an `onnx_ir` model in place for TensorRT's ONNX parser and says what it did."""
