"""fp8: E4M3 weights and calibrated activations of Linears and the patch Conv; needs sm89 or newer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from quantize.formats import FP8
from quantize.static import Static
from toolkit.errors import UsageError
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "Fp8"]


@dataclass(frozen=True)
class Fp8:
    """float8e4m3fn with 448 as the largest number, by `quantize.static`.

    `decoder` is the recipe for language models. Their activations are quantized as well: with fp8 in the weights alone
    nothing would be gained over int8, whose blocks drift less in as many bytes and run on older GPUs.
    """

    config: QuantConfig
    decoder: QuantConfig

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """The same for all models, but for the gate: language models are held to their distribution."""
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

        Raises UsageError without calibration or for a method that is made for integers, StageError on NaN or Inf.
        """
        used = recipe or self.recipe(spec)
        if used.calibration not in ("minmax", "percentile"):
            raise UsageError(
                f"'{used.calibration}' calibration is made for steps of one size, which fp8 does not have",
                hint="Allowed: minmax, percentile.",
            )
        return Static(FP8, used).apply(model, calibration)


_RECIPE = QuantConfig(
    weights="float8e4m3fn",
    activations="float8e4m3fn",
    gate=Gate(
        min_sqnr_db=18.0, min_cosine=0.992, max_accuracy_drop=1.0, min_top1_agreement=0.98, min_overlap_at_10=0.9
    ),
    calibration="minmax",
)

SCHEME = Fp8(_RECIPE, decoder=replace(_RECIPE, gate=Gate(min_sqnr_db=18.0, min_cosine=0.99, max_kl=0.05)))
