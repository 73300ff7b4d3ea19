"""Comparing two graphs module by module: who moved first, and where attention looks elsewhere."""
