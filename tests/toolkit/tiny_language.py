"""A language model in numpy with the inputs and outputs of a decoder: logits, and a cache of the tokens themselves."""

from __future__ import annotations

import numpy as np

from toolkit.types import DecoderSpec, Dim, ModelSpec, Tensors, TensorSpec

VOCABULARY = 300
LAYERS = 3


def decoder_spec(vocabulary: int = VOCABULARY, *, last_logits: bool = False) -> ModelSpec:
    caches = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    cache = ("batch", 1, "past_sequence", 2)
    return ModelSpec(
        name="tiny-lm", family="test", kind="decoder", task="text-generation", source="tests:tiny", architecture="Tiny",
        inputs=(
            TensorSpec("input_ids", "int64", ("batch", "sequence")),
            TensorSpec("attention_mask", "int64", ("batch", "total_sequence")),
            *(TensorSpec(f"past_key_values.{name}", "float32", cache) for name in caches),
        ),
        outputs=(
            TensorSpec("logits", "float32", ("batch", 1 if last_logits else "sequence", vocabulary)),
            *(TensorSpec(f"present.{name}", "float32", ("batch", 1, "total_sequence", 2)) for name in caches),
        ),
        dims={"batch": Dim(1, 1, 4), "sequence": Dim(1, 8, 64)},
        decoder=DecoderSpec(LAYERS, vocabulary, 64, eos=(2, 3), bos=1, last_logits=last_logits),
    )  # fmt: skip


def text(seed: int, rows: int = 1, width: int = 24, vocabulary: int = VOCABULARY) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, vocabulary, (rows, width))
    past = {
        f"past_key_values.{layer}.{part}": np.zeros((rows, 1, 0, 2), np.float32)
        for layer in range(LAYERS)
        for part in ("key", "value")
    }
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **past}


class Bigram:
    """A model whose logits hang on the token alone, behind the toolkit's own Session interface."""

    ran_on = "numpy on the CPU"

    def __init__(self, noise: float = 0.0, spread: float = 3.0, vocabulary: int = VOCABULARY) -> None:
        generator = np.random.default_rng(7)
        table = generator.standard_normal((vocabulary, vocabulary)) * spread
        self.table = (table + noise * generator.standard_normal(table.shape)).astype(np.float32)
        self.runs = 0

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        self.runs += 1
        ids = inputs["input_ids"]
        cache = np.repeat(ids[:, None, :, None], 2, axis=3).astype(np.float32)
        presents = {f"present.{layer}.{part}": cache for layer in range(LAYERS) for part in ("key", "value")}
        return {"logits": self.table[ids], **presents}

    def close(self) -> None:
        pass
