"""Searching the precision of each layer under a drift budget, for speed, size or both, measured on this machine."""
