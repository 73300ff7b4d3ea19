"""Lowering rules of Core ML, one subject a file."""
