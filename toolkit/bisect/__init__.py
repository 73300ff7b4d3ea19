"""Bisecting: the smallest set of layers that must stay in higher precision for the drift to pass its gate."""
