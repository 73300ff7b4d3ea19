"""int4 weights in blocks, fp32 activations: GPTQ behind calibration data, the most sensitive weights in int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from quantize.weight_only import quantize_weights
from toolkit.types import Calibration, Gate, ModelSpec, PackedWeight, QuantConfig, Step

__all__ = ["SCHEME", "Int4"]

BLOCK_SIZE = 32
MAX_KL = 0.04


@dataclass(frozen=True)
class Int4:
    """Symmetric int4 blocks of 32 along K; the last Linear and a decoder's embedding table are int8.

    A decoder's weights take 8 bits, the most sensitive first, until the rest is expected to stay below `max_kl`.
    Weights that a GGUF file had packed in 4 bits are written as they were.
    """

    config: QuantConfig
    decoder_gate: Gate
    max_kl: float = MAX_KL

    def recipe(self, spec: ModelSpec) -> QuantConfig:
        """The same for all models, but for the gate: language models are held to their distribution."""
        decoder = replace(self.config, gate=self.decoder_gate, embeddings="int8")
        return decoder if spec.kind == "decoder" else self.config

    def apply(
        self,
        model: ir.Model,
        spec: ModelSpec,
        calibration: Calibration | None,
        packed: Mapping[str, PackedWeight],
        recipe: QuantConfig | None = None,
    ) -> list[Step]:
        """Rewrite the Linears in place; without calibration data they are rounded to the nearest, and the log says so.

        Raises StageError where a weight or an activation is not finite, or a packed weight is not the graph's.
        """
        return quantize_weights(model, spec, recipe or self.recipe(spec), calibration, packed, max_kl=self.max_kl)


SCHEME = Int4(
    QuantConfig(
        weights="int4",
        activations=None,
        gate=Gate(min_sqnr_db=10.0, min_cosine=0.95),
        granularity="per-block",
        calibration="hessian",
        block_size=BLOCK_SIZE,
        rounding="gptq",
    ),
    decoder_gate=Gate(min_sqnr_db=10.0, min_cosine=0.95, max_perplexity_ratio=1.05, max_kl=0.05),
)
