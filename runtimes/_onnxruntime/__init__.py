"""What the ONNX Runtime runtimes share: lowering, sessions, and how their failures are told."""
