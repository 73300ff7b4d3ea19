"""What engines really run, read from real builds: each precision, unpacked weights, attention that was split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from trt_graphs import rtx

from runtimes._tensorrt.compile import compile_engines
from runtimes._tensorrt.job import Job, Profile
from runtimes._tensorrt.kernels import count_kernels
from toolkit.compiled import BuiltEngine, built_engines, describe_built

SMALL, LARGE = 64, 1024
"""Weights of int4 that are small are unpacked by a kernel of their own, large ones within the product."""
DTYPES = {"half": T.FLOAT16, "bf16": T.BFLOAT16, "float": T.FLOAT}


def shapes(size: int = SMALL, longest: int = 32) -> dict[str, Profile]:
    return {"x": ((1, 1, size), (2, min(16, longest), size), (4, longest, size))}


class Linears:
    """Writes Softmax(Tanh(x·W0)·W1) with the weights in one of the forms that the schemes write."""

    def __init__(self, form: str, size: int = SMALL) -> None:
        self.form, self.size, self.dtype = form, size, DTYPES.get(form, T.FLOAT16)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def save(self, path: Path) -> Path:
        first = self.linear(0, "x")
        self.nodes.append(helper.make_node("Tanh", [first], ["active"]))
        self.nodes.append(helper.make_node("Softmax", [self.linear(1, "active")], ["y"]))
        values = [
            helper.make_tensor_value_info(name, self.dtype, ["batch", "sequence", self.size]) for name in ("x", "y")
        ]
        graph = helper.make_graph(self.nodes, "linears", values[:1], values[1:], self.initializers)
        opsets = [helper.make_opsetid("", 23)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), path)
        return path

    def linear(self, number: int, x: str) -> str:
        weight = self.random.standard_normal((self.size, self.size)).astype(np.float32) * 0.1
        read = f"w{number}"
        if self.form in DTYPES:
            self.initializers.append(helper.make_tensor(read, self.dtype, weight.shape, weight.ravel()))
        elif self.form.startswith("half x int4"):
            codes = np.clip(np.rint(weight * 30), -8, 7).astype(int).ravel().tolist()
            self.initializers.append(helper.make_tensor(f"q{number}", T.INT4, weight.shape, codes))
            self.dequantize(number, np.full((self.size // 32, self.size), 1 / 30, np.float16), axis=0, block_size=32)
        elif self.form == "half x int8":
            self.initializers.append(numpy_helper.from_array(np.rint(weight * 300).astype(np.int8), f"q{number}"))
            self.dequantize(number, np.full(self.size, 1 / 300, np.float16), axis=1)
        else:
            x = self.fp8(number, x, weight)
        self.nodes.append(helper.make_node("MatMul", [x, read], [f"y{number}"]))
        return f"y{number}"

    def dequantize(self, number: int, scales: NDArray[np.float16], **attributes: int) -> None:
        self.initializers.append(numpy_helper.from_array(scales, f"s{number}"))
        inputs = [f"q{number}", f"s{number}"]
        if "block_size" not in attributes:
            self.initializers.append(numpy_helper.from_array(np.zeros(self.size, np.int8), f"z{number}"))
            inputs.append(f"z{number}")
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"w{number}"], **attributes))

    def fp8(self, number: int, x: str, weight: NDArray[np.float32]) -> str:
        scale, zero = f"s{number}", f"z{number}"
        self.initializers.append(helper.make_tensor(f"q{number}", T.FLOAT8E4M3FN, weight.shape, (weight * 100).ravel()))
        self.initializers.append(numpy_helper.from_array(np.array(0.01, np.float16), scale))
        self.initializers.append(helper.make_tensor(zero, T.FLOAT8E4M3FN, [], [0.0]))
        for source, result in ((f"q{number}", f"w{number}"), (f"code{number}", f"x{number}")):
            self.nodes.append(helper.make_node("DequantizeLinear", [source, scale, zero], [result]))
        self.nodes.insert(-1, helper.make_node("QuantizeLinear", [x, scale, zero], [f"code{number}"]))
        return f"x{number}"


def build(path: Path, *profiles: dict[str, Profile]) -> BuiltEngine:
    (built,) = compile_engines(Job("tensorrt_rtx", str(path), str(path.parent), ("sm89",), profiles or (shapes(),)))
    return built


@rtx
@pytest.mark.parametrize("form", ["half", "bf16", "float", "half x int8", "half x int4 unpacked", "fp8"])
def test_gemms_are_named_by_what_they_multiply(form: str, tmp_path: Path) -> None:
    built = build(Linears(form).save(tmp_path / "model.onnx"))
    assert built.gemms == {form: 2}
    assert built.gemm_words == f"2 of 2 {form}"
    assert built.int8_products == 0


@rtx
def test_large_int4_weights_are_unpacked_within_the_product(tmp_path: Path) -> None:
    built = build(Linears("half x int4", LARGE).save(tmp_path / "model.onnx"), shapes(LARGE))
    assert built.gemms == {"half x int4": 2}


@rtx
def test_every_profile_is_counted(tmp_path: Path) -> None:
    built = build(Linears("half").save(tmp_path / "model.onnx"), shapes(), shapes(longest=1))
    assert (built.gemms, built.profiles) == ({"half": 4}, 2)


@rtx
def test_the_products_of_a_split_attention_are_no_gemms_of_weights(tmp_path: Path) -> None:
    """Attention in fp32 has no fused kernel."""
    shape = "float[batch, 2, sequence, 32]"
    text = (
        f'<ir_version: 10, opset_import: ["": 23]> g ({shape} q, {shape} k, {shape} v) => ({shape} y)'
        " { y = Attention(q, k, v) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    shapes = ((1, 2, 1, 32), (2, 2, 16, 32), (4, 2, 32, 32))
    built = build(tmp_path / "model.onnx", dict.fromkeys("qkv", shapes))
    assert (built.gemms, built.attentions, built.fused_attentions) == ({}, 1, 0)
    assert built.fused_words == "0 of 1"


def test_what_the_builder_does_not_tell_is_unknown() -> None:
    assert count_kernels("Engine Layer Information:\nLayer(CaskGemm): dense") is None
    silent = BuiltEngine("sm90", "engine-sm90.plan", 10, 1.0, 4)
    assert (silent.gemm_words, silent.fused_words, silent.int8_products) == ("unknown", "unknown", None)
    assert "unknown" in describe_built([silent])


def test_architectures_of_one_outcome_are_told_together() -> None:
    def entry(name: str, gemms: dict[str, int], fused: int) -> BuiltEngine:
        return BuiltEngine(name, "", 1, 1.0, 4, profiles=3, fused_attentions=fused, gemms=gemms)

    engines = [entry("sm80", {"int8": 24, "half": 1}, 12), entry("sm86", {"int8": 24, "half": 1}, 12)]
    engines.append(entry("sm120", {"int8": 25}, 11))
    assert describe_built(engines) == (
        "for sm80, sm86: 24 of 25 GEMMs int8, 1 of 25 GEMMs half, 12 of 12 attentions fused; "
        "for sm120: 25 of 25 GEMMs int8, 11 of 12 attentions fused"
    )
    details = {"engines": {engine.architecture: {**engine.as_json(), "of a later toolkit": 1} for engine in engines}}
    assert built_engines(details) == tuple(engines)
    for foreign in (None, "none", {"sm80": 5}, {"sm80": {"file": "engine-sm80.plan"}}):
        assert built_engines({"engines": foreign}) == ()
