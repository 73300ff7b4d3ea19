"""Small language models in canonical form, built node by node, for tests of weight-only schemes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from quantize_graphs import OFF, Builder, graph_input

from toolkit.types import Calibration, DecoderSpec, Dim, ModelSpec, PackedWeight, TensorSpec

VOCABULARY, WIDTH, INNER, HEADS, SIZE = 96, 64, 128, 2, 32

DECODER = ModelSpec(
    name="tiny-decoder",
    family="test",
    kind="decoder",
    task="text-generation",
    source="test:tiny-decoder",
    architecture="Tiny",
    inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence")),),
    outputs=(TensorSpec("logits", "float32", ("batch", "sequence", VOCABULARY)),),
    dims={"batch": Dim(1, 2, 8), "sequence": Dim(1, 16, 64)},
    decoder=DecoderSpec(layers=2, vocabulary=VOCABULARY, context=64),
)


def decoder_model(
    *,
    tied: bool = True,
    copied: bool = False,
    last: bool = False,
    width: int = WIDTH,
    weights: dict[str, NDArray[Any]] | None = None,
) -> ir.Model:
    """Embedding, two pre-norm layers of causal attention and a gated MLP, norm and head.

    `last` answers the last position only; `copied` folds the tied head's transpose into a weight of its own;
    `weights` [K, N] replace random ones by name.
    """
    b = _Decoder(width, weights or {})
    ids = graph_input("input_ids", ["batch", "sequence"], ir.DataType.INT64)
    table = b.random("embed_tokens.weight", VOCABULARY, width, scale=1.0)
    x = b.op("Gather", table, ids, module="embed_tokens", axis=0)
    x.shape = ir.Shape(["batch", "sequence", width])
    for index in range(2):
        x = b.layer(x, f"layers.{index}")
    x = b.norm(x, "norm")
    logits = b.head(b.last(x) if last else x, table, tied=tied, copied=copied)
    return b.model([ids], {"logits": logits}, logits=["batch", 1 if last else "sequence", VOCABULARY])


class _Decoder(Builder):
    def __init__(self, width: int, weights: dict[str, NDArray[Any]]) -> None:
        super().__init__(7)
        self._width, self._given = width, weights

    def random(self, name: str, *shape: int, scale: float = 0.15) -> ir.Value:
        made = super().random(name, *shape, scale=scale)
        return self.weight(name, self._given[name]) if name in self._given else made

    def project(self, x: ir.Value, module: str, fan_in: int, fan_out: int) -> ir.Value:
        y = self.op("MatMul", x, self.random(f"{module}.weight", fan_in, fan_out, scale=0.08), module=module)
        y.shape = ir.Shape(["batch", "sequence", fan_out])
        return y

    def norm(self, x: ir.Value, module: str) -> ir.Value:
        gain = self.weight(f"{module}.weight", (self.rng.lognormal(sigma=0.5, size=self._width)).astype(np.float32))
        y = self.op("RMSNormalization", x, gain, module=module, axis=-1, epsilon=1e-6)
        y.shape = ir.Shape(["batch", "sequence", self._width])
        return y

    def attend(self, x: ir.Value, module: str) -> ir.Value:
        shape = self.weight(f"{module}.heads", np.array([0, 0, HEADS, SIZE], np.int64))
        q, k, v = (
            self.op(
                "Transpose",
                self.op("Reshape", self.project(x, f"{module}.{n}", self._width, 64), shape),
                perm=[0, 2, 1, 3],
            )
            for n in ("q_proj", "k_proj", "v_proj")
        )
        y = self.op(
            "FusedAttention", q, k, v, module=module, domain="toolkit", scale=SIZE**-0.5, **{**OFF, "is_causal": 1}
        )
        merged = self.weight(f"{module}.merged", np.array([0, 0, HEADS * SIZE], np.int64))
        flat = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), merged)
        flat.shape = ir.Shape(["batch", "sequence", HEADS * SIZE])
        return self.project(flat, f"{module}.o_proj", HEADS * SIZE, self._width)

    def layer(self, x: ir.Value, module: str) -> ir.Value:
        x = self.op("Add", x, self.attend(self.norm(x, f"{module}.input_layernorm"), f"{module}.self_attn"))
        read = self.norm(x, f"{module}.post_attention_layernorm")
        gate = self.project(read, f"{module}.mlp.gate_proj", self._width, INNER)
        up = self.project(read, f"{module}.mlp.up_proj", self._width, INNER)
        inner = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        inner.shape = ir.Shape(["batch", "sequence", INNER])
        return self.op("Add", x, self.project(inner, f"{module}.mlp.down_proj", INNER, self._width))

    def last(self, x: ir.Value) -> ir.Value:
        bounds = [self.weight(f"last.{index}", np.array([value])) for index, value in enumerate((-1, 2**31, 1))]
        y = self.op("Slice", x, *bounds, module="lm_head")
        y.shape = ir.Shape(["batch", 1, self._width])
        return y

    def head(self, x: ir.Value, table: ir.Value, *, tied: bool, copied: bool) -> ir.Value:
        if tied and not copied:
            weight = self.op("Transpose", table, module="lm_head", perm=[1, 0])
            weight.shape = ir.Shape([self._width, VOCABULARY])
        elif tied and table.const_value is not None:
            weight = self.weight("lm_head.weight", np.ascontiguousarray(table.const_value.numpy().T))
        else:
            weight = self.random("lm_head.weight", self._width, VOCABULARY)
        return self.op("MatMul", x, weight, module="lm_head")


def sentences(count: int = 8, seed: int = 3, tokens: int = 32) -> Calibration:
    """Token ids of which a few are frequent, so that activations are correlated."""

    def batches() -> Iterator[dict[str, NDArray[Any]]]:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            yield {"input_ids": np.minimum(rng.geometric(0.08, (2, tokens)), VOCABULARY - 1)}

    return Calibration(batches, count, "random ids")


def pack(rng: np.random.Generator, rows: int, columns: int, kind: str) -> PackedWeight:
    """A weight [rows, columns] on the grid of GGUF's Q4_0, Q4_1 or Q8_0, with fp16 scales."""
    bits, symmetric = (8 if kind == "q8_0" else 4), kind != "q4_1"
    blocks = columns // 32
    codes = rng.integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    scale = (rng.uniform(0.5, 1.5, (rows, blocks)) * 0.2 / 2**bits).astype(np.float16).astype(np.float32)
    middle = np.float32(1 << (bits - 1)) * scale
    offset = -middle if symmetric else (-middle * rng.uniform(0.8, 1.2, middle.shape)).astype(np.float16)
    offset = offset.astype(np.float32)
    return PackedWeight(bits, 32, (rows, columns), lambda: codes, lambda: scale, lambda: offset)


def unpack(packed: PackedWeight) -> NDArray[np.float32]:
    """The fp32 weight [N, K] that the file means."""
    scale, offset = (np.repeat(each, packed.block_size, axis=1) for each in (packed.scale(), packed.offset()))
    return packed.codes().astype(np.float32) * scale + offset
