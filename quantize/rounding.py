"""How planned weights are rounded: to the nearest, refined, or by what the calibration data says of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.awq import choose_factor
from quantize.block_nodes import Rounded, held, rounded, scaled
from quantize.blocks import Blocks, Grid, codes, dequantize, refine, scales
from quantize.gptq import Hessian, gptq
from quantize.linears import find_linears
from quantize.nodes import map_tensor, module_path
from quantize.packed import carry
from quantize.scaled import note_divided
from quantize.sequential import walk
from quantize.smoothing import Group, find_groups
from quantize.smoothing_fold import Fold, find_fold
from quantize.weights import Weight
from toolkit.types import Calibration

__all__ = ["round_by_data", "round_nearest"]

Array = NDArray[Any]


def round_nearest(weight: Weight, *, refined: bool = False) -> Rounded:
    """The file's own blocks, or the nearest integers. Raises StageError where a weight is NaN or Inf."""
    grid = weight.grid
    if grid is None:
        raise ValueError(f"weight {weight.value.name} has no grid")
    if weight.packed is not None:
        return carry(weight.value, weight.packed, weight.axis, grid.bits)
    return rounded(weight.tensor, weight.read(lambda array: _blocks(array, grid, weight.axis, refined)), weight.axis)


def round_by_data(
    model: ir.Model, weights: Sequence[Weight], calibration: Calibration, *, scale_inputs: bool
) -> tuple[dict[Weight, Rounded], int]:
    """GPTQ of the weights [K, N], or where `scale_inputs` AWQ; answers how many normalisations took factors, too.

    Weights are rounded in graph order, each on what it reads behind those rounded before it.
    Raises StageError where a weight or an activation is NaN or Inf.
    """
    work = _Work(model.graph, weights, scale_inputs)
    nodes = {node for weight in weights for node in weight.readers}
    groups = find_groups(linear for linear in find_linears(model.graph) if linear.node in nodes)
    walk(model, groups, calibration, work.round_group)
    for fold, factor, readers in work.folds:
        fold.apply(model.graph, np.reciprocal(factor))
        note_divided(model.graph, "in", readers, factor)
    return work.made, len(work.folds)


class _Work:
    """What has been rounded so far. Normalisations take their factors at the end: the walk runs the graph as it was."""

    def __init__(self, graph: ir.Graph, weights: Sequence[Weight], scale_inputs: bool) -> None:
        self.made: dict[Weight, Rounded] = {}
        self.folds: list[tuple[Fold, Array, tuple[str, ...]]] = []
        self._graph = graph
        self._weights = {weight.value: weight for weight in weights}
        self._scale_inputs = scale_inputs

    def round_group(self, group: Group, hessian: Hessian) -> Mapping[str, Array]:
        """Round the weights that read one tensor; answers what they now are, in fp32."""
        found = dict.fromkeys(self._weights[linear.weight] for linear in group.linears)
        weights = [weight for weight in found if weight not in self.made]
        factor = self._factor(group, weights, hessian) if self._scale_inputs else None
        return {str(weight.value.name): self._round(weight, hessian, factor) for weight in weights}

    def _round(self, weight: Weight, hessian: Hessian, factor: Array | None) -> Array:
        grid = weight.grid
        if grid is None:
            raise ValueError(f"weight {weight.value.name} has no grid")
        if grid.bits == 4 and not self._scale_inputs:
            integers, blocks = weight.read(lambda array: gptq(array, hessian, grid))
            self.made[weight] = held(integers, blocks)
            return dequantize(integers, blocks)
        blocks = weight.read(lambda array: scales(scaled(array, factor, 0), grid))
        self.made[weight] = rounded(weight.tensor, blocks, 0, factor)
        back = map_tensor(weight.tensor, lambda array: dequantize(codes(scaled(array, factor, 0), blocks), blocks))
        return scaled(back, None if factor is None else np.reciprocal(factor), 0)

    def _factor(self, group: Group, weights: Sequence[Weight], hessian: Hessian) -> Array | None:
        nodes = {linear.node for linear in group.linears}
        fold = find_fold(group.activation, group.width, nodes)
        alone = all(set(weight.readers) <= nodes for weight in weights)
        if fold is None or fold.kind != "norm" or not alone or len(weights) < len(nodes):
            return None
        grid = next((weight.grid for weight in weights if weight.grid and weight.grid.bits == 4), None)
        if grid is None:
            return None
        factor = choose_factor([weight.read(np.copy) for weight in weights], hessian, grid)
        if factor is not None:
            self.folds.append((fold, factor, tuple(module_path(linear.node) for linear in group.linears)))
        return factor


def _blocks(array: Array, grid: Grid, axis: int, refined: bool) -> Blocks:
    blocks = scales(array, grid, axis)
    return refine(array, blocks, axis) if refined else blocks
