"""fp32: the exported graph as it is; the reference for every other scheme."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "Fp32"]


class Fp32:
    """Changes nothing."""

    config = QuantConfig(
        weights=None,
        activations=None,
        gate=Gate(min_sqnr_db=90.0, min_cosine=0.999999, max_relative_l2=1e-4, min_top1_agreement=1.0),
    )

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """The same for every model."""
        return self.config

    def apply(
        self,
        model: ir.Model,
        spec: ModelSpec,
        calibration: Calibration | None,
        packed: Mapping[str, PackedWeight],
        recipe: QuantConfig | None = None,
    ) -> list[Step]:
        """Nothing is changed, and that is what the log says."""
        return []


SCHEME = Fp32()
