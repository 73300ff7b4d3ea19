"""Pooling to a single value is a mean: torch.onnx makes a loop over axes of the one-dimensional form."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node

__all__ = ["pool_by_mean"]

_AXES = {
    torch.ops.aten.adaptive_avg_pool1d.default: [-1],
    torch.ops.aten.adaptive_avg_pool2d.default: [-2, -1],
}


def pool_by_mean(program: ExportedProgram) -> int:
    """Replace adaptive average pooling to size 1 by the mean over the axes it pools; answer how many there were."""
    found = [node for node in program.graph.nodes if node.op == "call_function" and _pools_to_one(node)]
    for node in found:
        node.args = (node.args[0], _AXES[node.target], True)
        node.target = torch.ops.aten.mean.dim
    if found:
        program.graph_module.recompile()
    return len(found)


def _pools_to_one(node: Node) -> bool:
    return node.target in _AXES and all(size == 1 for size in node.args[1])  # type: ignore[union-attr]
