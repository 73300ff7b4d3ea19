"""Drift: how far each stage's outputs moved from the eager fp32 PyTorch model, held to a gate."""
