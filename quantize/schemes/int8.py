"""Static int8: weights and calibrated activations of Linears and the patch Conv; of a decoder the weights only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from quantize.formats import INT8
from quantize.histogram import DEFAULT_PERCENTILE
from quantize.linears import excluded_step, find_linears, quantize_linears, split_excluded
from quantize.nodes import lift_constants
from quantize.static import Static
from quantize.weight_only import quantize_weights
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "StaticInt8"]


@dataclass(frozen=True)
class StaticInt8:
    """Symmetric int8 by `quantize.static`.

    `decoder` is the recipe for language models, whose activations per-tensor int8 would ruin; `weights` that of all
    others for a runtime that computes in floating point.
    `percentile` is the share of each activation's magnitudes that the scale covers, in per cent, where it is used.
    """

    config: QuantConfig
    decoder: QuantConfig
    weights: QuantConfig
    percentile: float = DEFAULT_PERCENTILE

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """A decoder's weights only, in blocks; activations are quantized for all other models."""
        return self.decoder if spec.kind == "decoder" else self.config

    def weight_only(self, spec: ModelSpec) -> QuantConfig:
        """Weights [K, N] with scales [N], activations and the patch convolution as they are; a decoder's as ever."""
        return self.decoder if spec.kind == "decoder" else self.weights

    def apply(
        self,
        model: ir.Model,
        spec: ModelSpec,
        calibration: Calibration | None,
        packed: Mapping[str, PackedWeight],
        recipe: QuantConfig | None = None,
    ) -> list[Step]:
        """Rewrite the Linears in place. Raises UsageError without calibration, StageError on NaN or Inf.

        A decoder takes no calibration data, and `packed` weights as the file had them. A recipe without activations
        takes no calibration data either.
        """
        used = recipe or self.recipe(spec)
        if spec.kind == "decoder":
            return quantize_weights(model, spec, used, calibration, packed)
        if used.activations is None:
            return _weights_by_channel(model, used)
        return Static(INT8, used, self.percentile).apply(model, calibration)


def _weights_by_channel(model: ir.Model, recipe: QuantConfig) -> list[Step]:
    lift_constants(model)
    linears, excluded = split_excluded(find_linears(model.graph, convolutions=recipe.convolutions), recipe.exclude)
    steps = quantize_linears(model.graph, linears, None)
    return [*(step for step in steps if step.count), *excluded_step(excluded, recipe.exclude)]


SCHEME = StaticInt8(
    QuantConfig(
        weights="int8",
        activations="int8",
        gate=Gate(
            min_sqnr_db=18.0, min_cosine=0.992, max_accuracy_drop=1.0, min_top1_agreement=0.98, min_overlap_at_10=0.9
        ),
        calibration="minmax",
        smoothing=0.8,
        rounding="gptq",
    ),
    decoder=QuantConfig(
        weights="int8",
        activations=None,
        gate=Gate(min_sqnr_db=20.0, min_cosine=0.99, max_kl=0.005),
        granularity="per-block",
        embeddings="int8",
        block_size=32,
    ),
    weights=QuantConfig(
        weights="int8",
        activations=None,
        gate=Gate(
            min_sqnr_db=24.0, min_cosine=0.998, max_accuracy_drop=1.0, min_top1_agreement=0.98, min_overlap_at_10=0.95
        ),
        convolutions=False,
    ),
)
