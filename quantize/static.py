"""Static 8-bit quantization: calibrated activations and weights of Linears and the patch Conv, int8 or fp8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.arithmetic import affine_scale, symmetric_scale
from quantize.calibration import Channels, measure_channels, observe, require
from quantize.channel_rounding import round_by_data
from quantize.formats import INT8, Format
from quantize.histogram import DEFAULT_PERCENTILE, Histogram, Range, needs_histogram
from quantize.int8_attention import Int8Attention
from quantize.linears import (
    Linear,
    add_initializer,
    excluded_step,
    find_linears,
    quantize_activations,
    quantize_weights,
    split_excluded,
)
from quantize.nodes import lift_constants, new_node, unused_name
from quantize.residuals import residuals_in_float
from quantize.smoothing import Group, channel_weights, choose_smoothing, find_groups, smooth
from quantize.smoothing_search import search_smoothing
from quantize.token_ranges import require_opset, token_q_dq
from toolkit.types import Calibration, QuantConfig, Step

__all__ = ["Static", "choose_divisors", "scale_and_zero"]

_KEPT = {"minmax": "largest magnitude", "entropy": "least divergence", "mse": "least squared error"}


@dataclass(frozen=True)
class Static:
    """Q/DQ with zero points written out, as TensorRT and ONNX Runtime both read them.

    Weights [K, N] have scales [N], a Conv's [M, C, kH, kW] have [M], zero points of 0. Activations have one scale [],
    and by `recipe.activations` as `uint8` a zero point that gives both ends of their range all steps; by
    `recipe.ranges` as `per-token` every vector [K] that a Linear reads has its own, measured as it comes.
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
        if self.recipe.ranges == "per-token":
            require_opset(model)
        given = require(calibration, self.form.name)
        lift_constants(model)
        linears, excluded = self._linears(model)
        groups = find_groups(linears)
        # A convolution's image has no channels to smooth and is measured as a whole.
        widths = dict.fromkeys((linear.activation for linear in linears), 1)
        measured = {group.activation: group.width for group in groups}
        widths.update(measured)
        seen = measure_channels(model, widths, given) if widths else {}
        divisors = choose_divisors(model, groups, seen, self.recipe, given)
        once = [each for each in widths if self.recipe.ranges == "per-tensor" or each not in measured]
        weights = channel_weights(groups, divisors) if self.recipe.calibration == "mse" and once else {}
        bounds = self._bounds(model, once, seen, divisors, given, weights)
        steps, renamed = smooth(model.graph, groups, divisors) if self.recipe.smoothing is not None else ([], {})
        bounds = {renamed.get(name, name): bound for name, bound in bounds.items()}
        attention = self._attention(model, given)
        quantized = self._quantize(model, bounds, given)
        calibrated = self._calibrated(given, len(bounds), len(widths) - len(once))
        kept = residuals_in_float(model.graph, self.form.name)
        return [*quantized, *attention, *steps, *calibrated, kept, *excluded_step(excluded, self.recipe.exclude)]

    def _quantize(self, model: ir.Model, bounds: Mapping[str, Range], calibration: Calibration) -> list[Step]:
        """Activations first: data-driven rounding of the weights is to see what they have become."""
        pair = partial(self._q_dq, model.graph, bounds=bounds)
        activations = quantize_activations(model.graph, self._linears(model)[0], pair)
        linears, _ = self._linears(model)
        if self.recipe.rounding != "gptq" or not linears:
            return [*quantize_weights(model.graph, linears, self.form), activations]
        rounded = round_by_data(model, linears, calibration)
        said = Step("quantize", "weights rounded by what they read", len(rounded), "GPTQ, one scale a channel")
        return [*quantize_weights(model.graph, linears, self.form, rounded), activations, said]

    def _linears(self, model: ir.Model) -> tuple[list[Linear], list[Linear]]:
        return split_excluded(find_linears(model.graph), self.recipe.exclude)

    def _attention(self, model: ir.Model, calibration: Calibration) -> list[Step]:
        """Queries, keys and values in int8, where the recipe asks for it; measured after smoothing moved into them."""
        if self.recipe.attention == "float":
            return []
        found = Int8Attention(model)
        seen = measure_channels(model, dict.fromkeys(found.values, 1), calibration) if found.values else {}
        # Its own numbers are symmetric, whatever the Linears' are.
        alone = replace(self, recipe=replace(self.recipe, activations="int8"))
        bounds = alone._bounds(model, found.values, seen, {}, calibration)
        return found.quantize({name: bound.absmax for name, bound in bounds.items()})

    def _bounds(
        self,
        model: ir.Model,
        activations: list[ir.Value],
        seen: Mapping[str, Channels],
        divisors: Mapping[str, NDArray[np.float32]],
        calibration: Calibration,
        weights: Mapping[str, NDArray[np.int64]] = MappingProxyType({}),
    ) -> dict[str, Range]:
        """What of each smoothed activation the numbers are to cover."""
        method = self.recipe.calibration
        if needs_histogram(method) and activations:
            symmetric = self.recipe.activations != "uint8"
            kept = partial(Histogram.range, method=method, symmetric=symmetric, percent=self.percentile)
            histograms = observe(model, activations, calibration, divisors, weights)
            return {name: kept(histogram) for name, histogram in histograms.items()}
        # The range after a division is known without looking at the data again.
        names = [str(activation.name) for activation in activations]
        return {name: seen[name].range(divisors.get(name, 1)) for name in names}

    def _calibrated(self, calibration: Calibration, once: int, tokens: int) -> list[Step]:
        method = self.recipe.calibration
        detail = f"{self.percentile:g} per cent" if method == "percentile" else _KEPT.get(method, "")
        detail = f"{detail}, {calibration.count} from {calibration.source}"
        of_tokens = Step("quantize", "ranges measured as they come", tokens, "one for each token's vector")
        calibrated = Step("quantize", f"{method} calibration", once, detail)
        return [*([calibrated] if once or not tokens else []), *([of_tokens] if tokens else [])]

    def _q_dq(self, graph: ir.Graph, linear: Linear, *, bounds: Mapping[str, Range]) -> list[ir.Node]:
        name = linear.activation.name or ""
        if self.recipe.ranges == "per-token" and name not in bounds:
            return token_q_dq(graph, linear)
        tensors = scale_and_zero(bounds[name], self.recipe.activations, self.form)
        scale, zero = (
            add_initializer(graph, f"{name}_{what}", tensor)
            for what, tensor in zip(("scale", "zero_point"), tensors, strict=True)
        )
        quantized = unused_name(graph, f"{name}_quantized")
        first = new_node("QuantizeLinear", [linear.activation, scale, zero], quantized, linear.node)
        first.outputs[0].dtype = zero.dtype
        first.outputs[0].shape = linear.activation.shape
        output = unused_name(graph, f"{name}_dequantized")
        return [first, new_node("DequantizeLinear", [first.outputs[0], scale, zero], output, linear.node)]


def choose_divisors(
    model: ir.Model,
    groups: Sequence[Group],
    seen: Mapping[str, Channels],
    recipe: QuantConfig,
    calibration: Calibration,
) -> dict[str, NDArray[np.float32]]:
    """The divisors s [K] of the activations that the recipe smooths, by name: at its strength, or at the best."""
    if recipe.smoothing is None:
        return {}
    if recipe.smoothing == "search":
        return search_smoothing(model, groups, recipe, calibration)
    return choose_smoothing(groups, seen, recipe.smoothing)


def scale_and_zero(
    bound: Range, activations: str | None, form: Format = INT8
) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
    """The scale [] and zero point [] of an activation: affine for `uint8`, else symmetric in the format."""
    if activations == "uint8":
        scale, zero = affine_scale(bound.min, bound.max)
        return ir.tensor(scale), ir.tensor(zero)
    return ir.tensor(symmetric_scale(bound.absmax, form.largest)), form.zeros(())
