"""What two sides call one tensor: a module's output or input, or the tensor's own name."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Key"]


class Key(NamedTuple):
    """`out` and `in` name a module by its path, `tensor` a tensor of a graph, `answer` an output of the model."""

    kind: Literal["out", "in", "tensor", "answer"]
    name: str
