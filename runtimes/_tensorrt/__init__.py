"""What the TensorRT runtimes share: lowering rules, the preflight, the builder in its own process, the session."""
