"""int8 attention as an option: Q/DQ on queries, keys and values, decomposed for TensorRT, right on every runtime."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from trt_graphs import FEEDS, SPEC, Block

from quantize.schemes.int8 import SCHEME
from runtimes import portable_session
from runtimes._tensorrt.compile import compile_engines
from runtimes._tensorrt.job import Job
from runtimes._tensorrt.lowering import lower_model
from runtimes._tensorrt.preflight import objections
from runtimes._tensorrt.runtime import profiles_of
from runtimes.ort_cpu import RUNTIME as ORT_CPU
from toolkit.recipe.changes import parse_changes, tuned
from toolkit.types import Calibration, QuantConfig, QuantizedGraph, Step

HALF = ir.DataType.FLOAT16
SAMPLES = Calibration(lambda: iter([FEEDS]), 1, "test")
INT8 = tuned(parse_changes("attention=int8"), SCHEME.config)


def quantized(recipe: QuantConfig = INT8) -> tuple[ir.Model, list[Step]]:
    model = Block(int8=False).model()
    return model, SCHEME.apply(model, SPEC, SAMPLES, {}, recipe)


def answer(model: ir.Model, path: Path) -> NDArray[Any]:
    ir.save(model, path)
    session = portable_session(path)
    try:
        return session.run(FEEDS)["y"]
    finally:
        session.close()


def distance(got: NDArray[Any], exact: NDArray[Any]) -> float:
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> NDArray[Any]:
    return answer(Block(int8=False).model(), tmp_path_factory.mktemp("exact") / "m.onnx")


def test_queries_keys_and_values_are_int8_and_near(exact: NDArray[Any], tmp_path: Path) -> None:
    model, steps = quantized()
    (node,) = [node for node in model.graph if node.op_type == "FusedAttention"]
    for value in node.inputs[:3]:
        assert value is not None
        dequantize = value.producer()
        assert dequantize is not None
        assert dequantize.op_type == "DequantizeLinear"
        assert dequantize.inputs[0].dtype == ir.DataType.INT8
    assert [step.count for step in steps if step.what == "int8 attention"] == [1]
    assert 0 < distance(answer(model, tmp_path / "m.onnx"), exact) < 0.03


def test_the_largest_value_of_the_samples_becomes_127(tmp_path: Path) -> None:
    model, _ = quantized()
    quantize = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    heads = [node for node in quantize if str(node.inputs[0].name).startswith("Transpose")][:3]
    model.graph.outputs.extend(node.outputs[0] for node in heads)
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    made = portable_session(path).run(FEEDS)
    assert [np.abs(made[str(node.outputs[0].name)].astype(int)).max() for node in heads] == [127] * 3


def test_lowered_into_products_between_integers_and_near(exact: NDArray[Any], tmp_path: Path) -> None:
    model, _ = quantized()
    steps = lower_model(model, lambda: SAMPLES)
    assert [step.count for step in steps if step.what == "attention as int8 products"] == [1]
    assert not [node for node in model.graph if "Attention" in node.op_type]
    (softmax,) = [node for node in model.graph if node.op_type == "Softmax"]
    (after,) = softmax.outputs[0].consumers()
    assert (after.op_type, after.inputs[0].dtype) == ("QuantizeLinear", HALF)
    assert after.inputs[1].const_value.numpy() == pytest.approx(1 / 127, rel=1e-3)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert all(value.producer().op_type == "DequantizeLinear" for node in products for value in node.inputs)
    assert list(objections(model)) == []
    assert 0 < distance(answer(model, tmp_path / "m.onnx"), exact) < 0.04


def test_onnx_runtime_attends_in_float_and_is_right(exact: NDArray[Any], tmp_path: Path) -> None:
    model, _ = quantized()
    path = tmp_path / "source.onnx"
    portable = answer(model, path)
    lowered = ORT_CPU.lower(QuantizedGraph(path, SPEC, (), "int8"), tmp_path / "lowered")
    got = portable_session(lowered.path).run(FEEDS)["y"]
    assert distance(got, portable) < 0.01
    assert distance(got, exact) < 0.03


def test_a_head_size_without_a_kernel_is_left_and_named() -> None:
    model = Block(int8=False).model()
    (node,) = [node for node in model.graph if node.op_type == "FusedAttention"]
    for value in node.inputs[:3]:
        assert value is not None
        value.shape = ir.Shape(["batch", 4, "sequence", 8])
    steps = SCHEME.apply(model, SPEC, SAMPLES, {}, INT8)
    (left,) = [step for step in steps if step.what == "attention left in float"]
    assert (left.count, left.reason) == (1, f"{node.name}: head size 8 is none of 16, 32, 64")
    assert node.inputs[0].producer().op_type == "Transpose"


def test_scores_that_overflow_fp16_leave_the_products_in_fp32(tmp_path: Path) -> None:
    model = Block(int8=False, weight_scale=60.0).model()
    SCHEME.apply(model, SPEC, SAMPLES, {}, INT8)
    before = answer(model, tmp_path / "before.onnx")
    steps = lower_model(model, lambda: SAMPLES)
    assert [step.count for step in steps if step.what == "kept in fp32: scores"] == [1]
    assert not [step for step in steps if step.what == "attention as int8 products"]
    (softmax,) = [node for node in model.graph if node.op_type == "Softmax"]
    assert softmax.inputs[0].dtype == ir.DataType.FLOAT
    assert distance(answer(model, tmp_path / "after.onnx"), before) < 0.02


@pytest.mark.requires_rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize(("recipe", "count"), [(INT8, 1), (replace(INT8, attention="float"), 0)])
def test_the_engine_attends_in_int8_where_asked(recipe: QuantConfig, count: int, tmp_path: Path) -> None:
    model, _ = quantized(recipe)
    lower_model(model, lambda: SAMPLES)
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    (built,) = compile_engines(Job("tensorrt_rtx", str(path), str(tmp_path), ("sm89",), profiles_of(SPEC)))
    assert (built.int8_attentions, built.fused_attentions) == (count, 1)
