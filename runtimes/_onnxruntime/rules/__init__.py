"""Lowering rules into ONNX Runtime's dialect, one file each; every rule answers the steps it took."""
