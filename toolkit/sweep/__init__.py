"""Sweeps: models by targets by recipes, each run in a process of its own, here or on a Ray cluster."""
