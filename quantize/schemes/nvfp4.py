"""nvfp4: 4-bit floats in blocks of 16, weights and activations; of a decoder the weights only. Needs sm120."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from quantize.calibration import measure_channels, require
from quantize.float4 import BLOCK
from quantize.float4_nodes import dequantized_weight, quantized_activation
from quantize.formats import FP8
from quantize.linears import (
    Linear,
    drop_unused,
    excluded_step,
    find_linears,
    not_finite_weight,
    quantize_linears,
    split_excluded,
)
from quantize.matmuls import gemms_to_matmuls, last_linears
from quantize.nodes import lift_constants
from quantize.smoothing import choose_smoothing, find_groups, smooth
from toolkit.errors import UsageError
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "NvFp4"]

_NAMED = 4
_OPSET, _IR_VERSION = 23, 11
"""What first had float4 in QuantizeLinear, and in a file."""


@dataclass(frozen=True)
class NvFp4:
    """float4e2m1 in blocks of 16 along K, scales as `quantize.float4` says, in standard ONNX.

    The last Linears before an output have fp8 weights; a convolution and what 16 does not divide stay fp32.
    `decoder` is the recipe for language models.
    """

    config: QuantConfig
    decoder: QuantConfig

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """A decoder's weights only; activations are quantized for all other models."""
        return self.decoder if spec.kind == "decoder" else self.config

    def apply(
        self,
        model: ir.Model,
        spec: ModelSpec,
        calibration: Calibration | None,
        packed: Mapping[str, PackedWeight],
        recipe: QuantConfig | None = None,
    ) -> list[Step]:
        """Rewrite the Linears in place.

        Raises UsageError for an opset below 23 or without the calibration data that activations need, StageError
        where a weight or an activation is not finite.
        """
        used = recipe or self.recipe(spec)
        _check_opset(model)
        lift_constants(model)
        gemms_to_matmuls(model.graph)
        ours, _, _ = _split(model.graph, used)
        bounds, measured, steps = _bounds(model, ours, calibration, used)
        # Smoothing may have put a Mul before some of them.
        ours, heads, excluded = _split(model.graph, used)
        model.ir_version = max(model.ir_version or 0, _IR_VERSION)
        left = [each.module for each in ours if not _has_blocks(each)]
        ours = [each for each in ours if _has_blocks(each)]
        _quantize(model.graph, ours, bounds)
        in_fp8 = [step for step in quantize_linears(model.graph, heads, None, FP8) if step.count]
        return [
            Step("quantize", "nvfp4 Linears", len(ours), f"blocks of {BLOCK} along the inputs"),
            Step("quantize", "nvfp4 activations", len(bounds), measured),
            *in_fp8,
            *steps,
            *_left(left),
            *excluded_step(excluded, used.exclude),
        ]


def _split(graph: ir.Graph, recipe: QuantConfig) -> tuple[list[Linear], list[Linear], list[Linear]]:
    """The Linears to quantize, the last ones before an output, and those that the user excluded."""
    found = [each for each in find_linears(graph) if each.node.op_type == "MatMul"]
    linears, excluded = split_excluded(found, recipe.exclude)
    last = last_linears(graph, linears)
    heads = [each for each in linears if each.node in last]
    return [each for each in linears if each.node not in last], heads, excluded


def _left(modules: list[str]) -> list[Step]:
    if not modules:
        return []
    reason = f"{BLOCK} does not divide the inputs of {', '.join(modules[:_NAMED])}"
    return [Step("quantize", "kept in fp32: no block", len(modules), reason)]


def _check_opset(model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < _OPSET:
        raise UsageError(
            f"scheme 'nvfp4' needs ONNX opset {_OPSET}, the graph has {opset}",
            hint="Leave --opset out, or give a newer one.",
        )


def _has_blocks(linear: Linear) -> bool:
    return linear.weight.shape is not None and int(linear.weight.shape[0]) % BLOCK == 0


def _bounds(
    model: ir.Model, linears: list[Linear], calibration: Calibration | None, recipe: QuantConfig
) -> tuple[dict[str, float], str, list[Step]]:
    """The largest magnitude of each activation that is to be quantized, by name, where from, and the log.

    With `recipe.smoothing`, outlier channels move into the weights first: in a block they cost the other 15.
    """
    if recipe.activations is None:
        return {}, "weights only", []
    given = require(calibration, "nvfp4")
    if any(each.activation.shape is None for each in linears):
        ShapeInferencePass()(model)
    groups = [
        group for group in find_groups(linears) if group.activation.shape is not None and group.width % BLOCK == 0
    ]
    seen = measure_channels(model, {group.activation: group.width for group in groups}, given) if groups else {}
    alpha = recipe.smoothing
    divisors = choose_smoothing(groups, seen, alpha) if isinstance(alpha, float) else {}
    steps, renamed = smooth(model.graph, groups, divisors) if alpha is not None else ([], {})
    largest = {name: float((held.absmax / divisors.get(name, 1)).max()) for name, held in seen.items()}
    unknown = len({each.activation for each in linears if _has_blocks(each)}) - len(groups)
    left = f"; {unknown} of unknown rank are left as they are" if unknown else ""
    source = f"a scale a block from each input, one a tensor from {given.count} of {given.source}{left}"
    return {renamed.get(name, name): bound for name, bound in largest.items()}, source, steps


def _quantize(graph: ir.Graph, linears: list[Linear], bounds: Mapping[str, float]) -> None:
    weights: dict[ir.Value, ir.Value] = {}
    activations: dict[ir.Value, ir.Value] = {}
    for linear in linears:
        source = linear.activation
        if linear.weight not in weights:
            try:
                weights[linear.weight] = dequantized_weight(graph, linear)
            except ValueError as error:
                raise not_finite_weight(linear) from error
        linear.node.replace_input_with(1, weights[linear.weight])
        bound = bounds.get(str(source.name))
        if bound is not None:
            if source not in activations:
                activations[source] = quantized_activation(graph, linear, bound)
            linear.node.replace_input_with(0, activations[source])
    drop_unused(graph, [linear.weight for linear in linears])


SCHEME = NvFp4(
    QuantConfig(
        weights="float4e2m1",
        activations="float4e2m1",
        gate=Gate(
            min_sqnr_db=6.5, min_cosine=0.89, max_accuracy_drop=2.0, min_top1_agreement=0.97, min_overlap_at_10=0.78
        ),
        granularity="per-block",
        block_size=BLOCK,
        calibration="minmax",
    ),
    decoder=QuantConfig(
        weights="float4e2m1",
        activations=None,
        gate=Gate(min_sqnr_db=7.5, min_cosine=0.95, max_kl=0.25),
        granularity="per-block",
        block_size=BLOCK,
    ),
)
