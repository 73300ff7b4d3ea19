"""Static 8-bit quantization: calibrated activations and weights of Linears and the patch Conv, int8 or fp8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.arithmetic import symmetric_scale
from quantize.calibration import Channels, measure_channels, observe, require
from quantize.formats import Format
from quantize.histogram import DEFAULT_PERCENTILE, Histogram
from quantize.int8_attention import Int8Attention
from quantize.linears import Linear, add_initializer, excluded_step, find_linears, quantize_linears, split_excluded
from quantize.nodes import lift_constants, new_node, unused_name
from quantize.residuals import residuals_in_float
from quantize.smoothing import channel_weights, choose_smoothing, find_groups, smooth
from toolkit.types import Calibration, QuantConfig, Step

__all__ = ["Static"]

_KEPT = {"minmax": "largest magnitude", "entropy": "least divergence", "mse": "least squared error"}


@dataclass(frozen=True)
class Static:
    """Symmetric Q/DQ, zero points written out as zeros, as TensorRT and ONNX Runtime both read them.

    Weights [K, N] have scales [N], a Conv's [M, C, kH, kW] have [M], activations have one scale [].
    Additions, normalisations, softmax, attention, biases and outputs stay fp32; `attention=int8` in the recipe of int8
    quantizes queries, keys and values too, one scale [] a tensor.
    Outlier channels are smoothed into the weights first, as `recipe.smoothing` says.
    `percentile` is the share of each activation's magnitudes that the scale covers, in per cent, where it is used.
    """

    form: Format
    recipe: QuantConfig
    percentile: float = DEFAULT_PERCENTILE

    def apply(self, model: ir.Model, calibration: Calibration | None) -> list[Step]:
        """Rewrite the Linears in place. Raises UsageError without calibration, StageError on NaN or Inf."""
        given = require(calibration, self.form.name)
        lift_constants(model)
        linears, excluded = self._linears(model)
        groups = find_groups(linears)
        # A convolution's image has no channels to smooth and is measured as a whole.
        widths = dict.fromkeys((linear.activation for linear in linears), 1)
        widths.update((group.activation, group.width) for group in groups)
        seen = measure_channels(model, widths, given) if widths else {}
        alpha = self.recipe.smoothing
        divisors = choose_smoothing(groups, seen, alpha) if alpha is not None else {}
        weights = channel_weights(groups, divisors) if self.recipe.calibration == "mse" else {}
        bounds = self._bounds(model, list(widths), seen, divisors, given, weights)
        steps, renamed = smooth(model.graph, groups, divisors) if alpha is not None else ([], {})
        bounds = {renamed.get(name, name): bound for name, bound in bounds.items()}
        attention = self._attention(model, given)
        linears, _ = self._linears(model)
        pair = partial(_q_dq, model.graph, bounds=bounds, form=self.form)
        quantized = quantize_linears(model.graph, linears, pair, self.form)
        calibrated = self._calibrated(given, len(bounds))
        kept = residuals_in_float(model.graph, self.form.name)
        return [*quantized, *attention, *steps, calibrated, kept, *excluded_step(excluded, self.recipe.exclude)]

    def _linears(self, model: ir.Model) -> tuple[list[Linear], list[Linear]]:
        return split_excluded(find_linears(model.graph), self.recipe.exclude)

    def _attention(self, model: ir.Model, calibration: Calibration) -> list[Step]:
        """Queries, keys and values in int8, where the recipe asks for it; measured after smoothing moved into them."""
        if self.recipe.attention == "float":
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
        weights: Mapping[str, NDArray[np.int64]] = MappingProxyType({}),
    ) -> dict[str, float]:
        """The magnitude of each smoothed activation that is to become the largest number."""
        method = self.recipe.calibration
        if method in ("percentile", "entropy", "mse") and activations:
            kept = partial(Histogram.range, method=method, symmetric=True, percent=self.percentile)
            histograms = observe(model, activations, calibration, divisors, weights)
            return {name: kept(histogram).absmax for name, histogram in histograms.items()}
        # The largest magnitude after a division is known without looking at the data again.
        return {name: float((held.absmax / divisors.get(name, 1)).max()) for name, held in seen.items()}

    def _calibrated(self, calibration: Calibration, count: int) -> Step:
        method = self.recipe.calibration
        detail = f"{self.percentile:g} per cent" if method == "percentile" else _KEPT.get(method, "")
        return Step(
            "quantize", f"{method} calibration", count, f"{detail}, {calibration.count} from {calibration.source}"
        )


def _q_dq(graph: ir.Graph, linear: Linear, *, bounds: Mapping[str, float], form: Format) -> list[ir.Node]:
    name = linear.activation.name or ""
    scale = add_initializer(graph, f"{name}_scale", ir.tensor(symmetric_scale(bounds[name], form.largest)))
    zero = add_initializer(graph, f"{name}_zero_point", form.zeros(()))
    quantized = unused_name(graph, f"{name}_quantized")
    first = new_node("QuantizeLinear", [linear.activation, scale, zero], quantized, linear.node)
    first.outputs[0].dtype = form.dtype
    first.outputs[0].shape = linear.activation.shape
    output = unused_name(graph, f"{name}_dequantized")
    return [first, new_node("DequantizeLinear", [first.outputs[0], scale, zero], output, linear.node)]
