"""Static int8: per-channel weights and calibrated per-tensor activations of Linears and the patch Conv, as Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from quantize.arithmetic import symmetric_scale
from quantize.calibration import DEFAULT_PERCENTILE, Histogram, observe, require
from quantize.linears import Linear, add_initializer, excluded_step, find_linears, quantize_linears, split_excluded
from quantize.nodes import lift_constants, new_node, unused_name
from toolkit.types import Calibration, Gate, ModelSpec, QuantConfig, Step

__all__ = ["SCHEME", "StaticInt8"]


@dataclass(frozen=True)
class StaticInt8:
    """Symmetric int8, zero points written out as int8 zeros, as TensorRT and ONNX Runtime both read them.

    Weights [K, N] have scales [N], a Conv's [M, C, kH, kW] have [M], activations have one scale [].
    Additions, normalisations, softmax, attention, biases and outputs stay fp32.
    `percentile` is the share of each activation's magnitudes that the scale covers, in per cent.
    """

    config: QuantConfig
    percentile: float = DEFAULT_PERCENTILE

    def apply(self, model: ir.Model, spec: ModelSpec, calibration: Calibration | None) -> list[Step]:
        """Rewrite the Linears in place. Raises UsageError without calibration, StageError on NaN or Inf."""
        given = require(calibration, "int8")
        lift_constants(model)
        linears, excluded = split_excluded(find_linears(model.graph), self.config.exclude)
        activations = dict.fromkeys(linear.activation for linear in linears)
        seen = observe(model, activations, given) if activations else {}
        bounds = {name: self._bound(histogram) for name, histogram in seen.items()}
        steps = quantize_linears(model.graph, linears, lambda linear: _q_dq(model.graph, linear, bounds))
        return [*steps, self._calibrated(given, len(bounds)), *excluded_step(excluded, self.config.exclude)]

    def _bound(self, histogram: Histogram) -> float:
        method: Literal["none", "minmax", "percentile"] = self.config.calibration
        return histogram.percentile(self.percentile) if method == "percentile" else histogram.absmax

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
            min_sqnr_db=12.0, min_cosine=0.96, max_accuracy_drop=1.0, min_top1_agreement=0.98, min_overlap_at_10=0.8
        ),
        calibration="percentile",
    )
)
