"""Static int8: weights and calibrated activations of Linears and the patch Conv; of a decoder the weights only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.arithmetic import symmetric_scale
from quantize.calibration import DEFAULT_PERCENTILE, Channels, measure_channels, observe, require
from quantize.int8_attention import Int8Attention
from quantize.linears import Linear, add_initializer, excluded_step, find_linears, quantize_linears, split_excluded
from quantize.nodes import lift_constants, new_node, unused_name
from quantize.residuals import residuals_in_float
from quantize.smoothing import choose_smoothing, find_groups, smooth
from quantize.weight_only import quantize_weights
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "StaticInt8"]


@dataclass(frozen=True)
class StaticInt8:
    """Symmetric int8, zero points written out as int8 zeros, as TensorRT and ONNX Runtime both read them.

    Weights [K, N] have scales [N], a Conv's [M, C, kH, kW] have [M], activations have one scale [].
    Additions, normalisations, softmax, attention, biases and outputs stay fp32; `attention=int8` in the recipe
    quantizes queries, keys and values too, one scale [] a tensor.
    Outlier channels are smoothed into the weights first, as `config.smoothing` says.
    `decoder` is the recipe for language models, whose activations per-tensor int8 would ruin.
    `percentile` is the share of each activation's magnitudes that the scale covers, in per cent, where it is used.
    """

    config: QuantConfig
    decoder: QuantConfig
    percentile: float = DEFAULT_PERCENTILE

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """A decoder's weights only, in blocks; activations are quantized for all other models."""
        return self.decoder if spec.kind == "decoder" else self.config

    def apply(
        self,
        model: ir.Model,
        spec: ModelSpec,
        calibration: Calibration | None,
        packed: Mapping[str, PackedWeight],
        recipe: QuantConfig | None = None,
    ) -> list[Step]:
        """Rewrite the Linears in place. Raises UsageError without calibration, StageError on NaN or Inf.

        A decoder takes no calibration data, and `packed` weights as the file had them.
        """
        if spec.kind == "decoder":
            return quantize_weights(model, spec, recipe or self.decoder, calibration, packed)
        if recipe is not None and recipe != self.config:
            return replace(self, config=recipe).apply(model, spec, calibration, packed)
        given = require(calibration, "int8")
        lift_constants(model)
        linears, excluded = self._linears(model)
        groups = find_groups(linears)
        # A convolution's image has no channels to smooth and is measured as a whole.
        widths = dict.fromkeys((linear.activation for linear in linears), 1)
        widths.update((group.activation, group.width) for group in groups)
        seen = measure_channels(model, widths, given) if widths else {}
        alpha = self.config.smoothing
        divisors = choose_smoothing(groups, seen, alpha) if alpha is not None else {}
        bounds = self._bounds(model, list(widths), seen, divisors, given)
        steps, renamed = smooth(model.graph, groups, divisors) if alpha is not None else ([], {})
        bounds = {renamed.get(name, name): bound for name, bound in bounds.items()}
        attention = self._attention(model, given)
        linears, _ = self._linears(model)
        quantized = quantize_linears(model.graph, linears, lambda linear: _q_dq(model.graph, linear, bounds))
        calibrated = self._calibrated(given, len(bounds))
        kept = residuals_in_float(model.graph)
        return [*quantized, *attention, *steps, calibrated, kept, *excluded_step(excluded, self.config.exclude)]

    def _linears(self, model: ir.Model) -> tuple[list[Linear], list[Linear]]:
        return split_excluded(find_linears(model.graph), self.config.exclude)

    def _attention(self, model: ir.Model, calibration: Calibration) -> list[Step]:
        """Queries, keys and values in int8, where the recipe asks for it; measured after smoothing moved into them."""
        if self.config.attention == "float":
            return []
        found = Int8Attention(model)
        seen = measure_channels(model, dict.fromkeys(found.values, 1), calibration) if found.values else {}
        return found.quantize(self._bounds(model, found.values, seen, {}, calibration))

    def _bounds(
        self,
        model: ir.Model,
        activations: list[ir.Value],
        seen: Mapping[str, Channels],
        divisors: Mapping[str, NDArray[np.float32]],
        calibration: Calibration,
    ) -> dict[str, float]:
        """The magnitude of each smoothed activation that is to become 127."""
        if self.config.calibration == "percentile" and activations:
            histograms = observe(model, activations, calibration, divisors)
            return {name: histogram.percentile(self.percentile) for name, histogram in histograms.items()}
        # The largest magnitude after a division is known without looking at the data again.
        return {name: float((held.absmax / divisors.get(name, 1)).max()) for name, held in seen.items()}

    def _calibrated(self, calibration: Calibration, count: int) -> Step:
        method = self.config.calibration
        detail = f"{self.percentile:g} per cent" if method == "percentile" else "largest magnitude"
        return Step(
            "quantize", f"{method} calibration", count, f"{detail}, {calibration.count} from {calibration.source}"
        )


def _q_dq(graph: ir.Graph, linear: Linear, bounds: Mapping[str, float]) -> list[ir.Node]:
    name = linear.activation.name or ""
    scale = add_initializer(graph, f"{name}_scale", ir.tensor(symmetric_scale(bounds[name])))
    zero = add_initializer(graph, f"{name}_zero_point", ir.tensor(np.zeros((), np.int8)))
    quantized = unused_name(graph, f"{name}_quantized")
    first = new_node("QuantizeLinear", [linear.activation, scale, zero], quantized, linear.node)
    first.outputs[0].dtype = ir.DataType.INT8
    first.outputs[0].shape = linear.activation.shape
    output = unused_name(graph, f"{name}_dequantized")
    return [first, new_node("DequantizeLinear", [first.outputs[0], scale, zero], output, linear.node)]


SCHEME = StaticInt8(
    QuantConfig(
        weights="int8",
        activations="int8",
        gate=Gate(
            min_sqnr_db=18.0, min_cosine=0.992, max_accuracy_drop=1.0, min_top1_agreement=0.98, min_overlap_at_10=0.9
        ),
        calibration="minmax",
        smoothing=0.8,
    ),
    decoder=QuantConfig(
        weights="int8",
        activations=None,
        gate=Gate(min_sqnr_db=20.0, min_cosine=0.99, max_kl=0.005),
        granularity="per-block",
        block_size=32,
    ),
)
