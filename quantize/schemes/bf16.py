"""bf16: weights and activations in bfloat16, normalisations in fp32; needs no calibration."""

from __future__ import annotations

import onnx_ir as ir

from quantize.sixteen_bits import SixteenBits
from toolkit.types import Gate, QuantConfig

__all__ = ["SCHEME"]

SCHEME = SixteenBits(
    "bf16",
    ir.DataType.BFLOAT16,
    QuantConfig(
        weights="bfloat16",
        activations="bfloat16",
        gate=Gate(min_sqnr_db=34.0, min_cosine=0.9997, max_accuracy_drop=0.5, min_overlap_at_10=0.97),
    ),
    decoder=Gate(min_sqnr_db=30.0, min_cosine=0.9995, max_kl=0.004),
)
