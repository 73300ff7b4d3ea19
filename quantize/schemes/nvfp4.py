"""nvfp4: 4-bit floats in blocks of 16, weights and activations; of a decoder the weights only. Needs sm120."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from quantize.calibration import measure_ranges, require
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
from toolkit.errors import UsageError
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "NvFp4"]

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
        found = [each for each in find_linears(model.graph) if each.node.op_type == "MatMul"]
        linears, excluded = split_excluded(found, used.exclude)
        last = last_linears(model.graph, linears)
        ours = [each for each in linears if each.node not in last and _has_blocks(each)]
        bounds, measured = _bounds(model, ours, calibration, used)
        model.ir_version = max(model.ir_version or 0, _IR_VERSION)
        _quantize(model.graph, ours, bounds)
        heads = [each for each in linears if each.node in last]
        steps = [step for step in quantize_linears(model.graph, heads, None, FP8) if step.count]
        left = len(linears) - len(ours) - len(heads)
        return [
            Step("quantize", "nvfp4 Linears", len(ours), f"blocks of {BLOCK} along the inputs"),
            Step("quantize", "nvfp4 activations", len(bounds), measured),
            *steps,
            *([Step("quantize", "kept in fp32: no block", left, f"{BLOCK} divides not their inputs")] if left else []),
            *excluded_step(excluded, used.exclude),
        ]


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
) -> tuple[dict[ir.Value, float], str]:
    """The largest magnitude of each activation that is to be quantized, and where it comes from."""
    if recipe.activations is None:
        return {}, "weights only"
    given = require(calibration, "nvfp4")
    if any(each.activation.shape is None for each in linears):
        ShapeInferencePass()(model)
    activations = dict.fromkeys(each.activation for each in linears if each.activation.shape is not None)
    ranges = measure_ranges(model, activations, given) if activations else {}
    bounds = {value: ranges[str(value.name)].absmax for value in activations}
    unknown = len({each.activation for each in linears}) - len(bounds)
    left = f"; {unknown} of unknown rank are left as they are" if unknown else ""
    return bounds, f"a scale a block from each input, one a tensor from {given.count} of {given.source}{left}"


def _quantize(graph: ir.Graph, linears: list[Linear], bounds: Mapping[ir.Value, float]) -> None:
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
        if source in bounds:
            if source not in activations:
                activations[source] = quantized_activation(graph, linear, bounds[source])
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
