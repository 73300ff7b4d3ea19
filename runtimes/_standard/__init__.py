"""Lowering rules that write operators of the ONNX standard alone, for runtimes of several libraries.

Most give TensorRT's reasons, for which they were first written; Core ML and ONNX Runtime on phones take the same form.
"""
