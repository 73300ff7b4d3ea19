"""Palettized: each weight an index of 4 bits into a table of 16 numbers, which k-means chose; fp32 activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from quantize.palettized import palettize
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "Palettized"]

CHANNELS = 16


@dataclass(frozen=True)
class Palettized:
    """One table for each `channels` output channels; the last Linear's and those of a decoder's embedding have 256.

    Convolutions, position embeddings, biases and activations stay as they are.
    """

    config: QuantConfig
    decoder_gate: Gate
    channels: int = CHANNELS

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """The same for all models, but for the gate: language models are held to their distribution."""
        return replace(self.config, gate=self.decoder_gate) if spec.kind == "decoder" else self.config

    def apply(
        self,
        model: ir.Model,
        spec: ModelSpec,
        calibration: Calibration | None,
        packed: Mapping[str, PackedWeight],
        recipe: QuantConfig | None = None,
    ) -> list[Step]:
        """Rewrite the Linears in place; without calibration data each weight takes the nearest entry.

        Weights that the source had packed are taken by the fp32 values that the graph holds.
        Raises StageError where a weight is NaN, Inf or beyond float16, or an activation is not finite.
        """
        return palettize(model, spec, recipe or self.recipe(spec), calibration, self.channels)


SCHEME = Palettized(
    QuantConfig(
        weights="palette4",
        activations=None,
        gate=Gate(min_sqnr_db=10.0, min_cosine=0.95),
        calibration="hessian",
        rounding="gptq",
    ),
    decoder_gate=Gate(min_sqnr_db=10.0, min_cosine=0.95),
)
