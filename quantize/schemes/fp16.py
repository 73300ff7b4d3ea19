"""fp16: weights and activations in half precision; normalisations and what overflows stay fp32."""

from __future__ import annotations

import onnx_ir as ir

from quantize.sixteen_bits import SixteenBits
from toolkit.types import Gate, QuantConfig

__all__ = ["SCHEME"]

SCHEME = SixteenBits(
    "fp16",
    ir.DataType.FLOAT16,
    QuantConfig(
        weights="float16",
        activations="float16",
        gate=Gate(
            min_sqnr_db=50.0, min_cosine=0.9999, max_accuracy_drop=0.5, min_top1_agreement=0.99, min_overlap_at_10=0.98
        ),
        calibration="minmax",
    ),
)
