"""One name for a weight, in a source file and in the canonical graph alike."""

from __future__ import annotations

__all__ = ["WRAPPERS", "canonical_weight"]

WRAPPERS = ("module.", "model.")


def canonical_weight(path: str) -> str:
    """The parameter's path without the exporter's wrapper and ours, once each.

    `module.model.encoder.layer.0.output.dense.weight` is `encoder.layer.0.output.dense.weight`.
    """
    for wrapper in WRAPPERS:
        path = path.removeprefix(wrapper)
    return path
