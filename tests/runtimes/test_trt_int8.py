"""int8 for TensorRT: the rest in half precision where its range is proven, scales in the dtype beside them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from trt_graphs import FEEDS, Block

from runtimes import portable_session
from runtimes._standard.bounds import bounds_of
from runtimes._standard.half import half_elsewhere
from runtimes._tensorrt.lowering import lower_model
from runtimes._tensorrt.preflight import objections
from toolkit.types import Calibration

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


def answer(model: ir.Model, path: Path) -> np.ndarray:
    ir.save(model, path)
    session = portable_session(path)
    return session.run(FEEDS)["y"]


def of_type(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def test_near_the_int8_graph_in_fp32(tmp_path: Path) -> None:
    lowered = Block(int8=True).model()
    lower_model(lowered)
    before = answer(Block(int8=True).model(), tmp_path / "before.onnx")
    after = answer(lowered, tmp_path / "after.onnx")
    assert after.dtype == np.float32
    assert np.linalg.norm(after - before) < 0.01 * np.linalg.norm(before)


def test_attention_and_products_are_half_and_normalisation_is_not() -> None:
    model = Block(int8=True).model()
    steps = lower_model(model)
    assert [node.inputs[0].dtype for node in of_type(model, "Attention")] == [HALF]
    assert {node.inputs[index].dtype for node in of_type(model, "MatMul") for index in (0, 1)} == {HALF}
    assert [node.inputs[0].dtype for node in of_type(model, "LayerNormalization")] == [FULL]
    assert any("fp16" in step.what for step in steps)


def test_no_cast_stands_between_int8_and_its_product() -> None:
    model = Block(int8=True).model()
    lower_model(model)
    for node in of_type(model, "MatMul"):
        assert [value.producer().op_type for value in node.inputs] == ["DequantizeLinear", "DequantizeLinear"]
    for node in of_type(model, "QuantizeLinear"):
        assert node.inputs[0].dtype == node.inputs[1].dtype
    assert list(objections(model)) == []


def test_other_graphs_are_left_alone() -> None:
    model = Block(int8=False).model()
    before = [node.op_type for node in model.graph]
    assert half_elsewhere(model) == []
    assert [node.op_type for node in model.graph] == before


def test_a_sum_that_may_overflow_stays_fp32(tmp_path: Path) -> None:
    model = Block(int8=True, gain=1e5).model()
    steps = lower_model(model)
    assert any("not proven" in step.what for step in steps)
    (residual,) = [node for node in of_type(model, "Add") if node.outputs[0].name == "y"]
    assert residual.inputs[1].dtype == FULL
    assert np.isfinite(answer(model, tmp_path / "m.onnx")).all()


def test_what_cannot_be_proven_is_half_where_it_was_measured() -> None:
    samples = Calibration(lambda: iter([FEEDS]), 1, "test")
    for given, dtype in ((None, FULL), (lambda: samples, HALF)):
        model = Block(int8=True, gain=8e3).model()
        steps = lower_model(model, given)
        assert any("not proven" in step.what for step in steps) == (given is None)
        # The graph's output keeps its dtype; the residual sum behind it is what counts.
        assert of_type(model, "Add")[-1].outputs[0].dtype == dtype
    (basis,) = [step.reason for step in steps if step.what == "nodes beside int8 in fp16"]
    assert basis.endswith("tensors measured on 1 from test")


def test_scales_too_small_for_half_keep_their_product_in_fp32(tmp_path: Path) -> None:
    model = Block(int8=True, weight_scale=1e-6).model()
    steps = lower_model(model)
    assert any("scale" in step.reason for step in steps)
    assert {node.inputs[1].dtype for node in of_type(model, "MatMul")} == {FULL}
    before = answer(Block(int8=True, weight_scale=1e-6).model(), tmp_path / "before.onnx")
    np.testing.assert_allclose(answer(model, tmp_path / "after.onnx"), before, rtol=0, atol=0.01)


@pytest.mark.parametrize("factor", [0.1, 1.0, 100.0, 1e4])
def test_bounds_hold_whatever_is_fed(factor: float, tmp_path: Path) -> None:
    model = Block(int8=True).model()
    bounds = bounds_of(model.graph)
    finite = [
        value
        for node in model.graph
        for value in node.outputs
        # ONNX Runtime folds dequantized weights and then refuses them as outputs.
        if node.op_type != "DequantizeLinear"
        if math.isfinite(bounds[str(value.name)]) and value.dtype == FULL and not value.is_graph_output()
    ]
    assert len(finite) > 12
    model.graph.outputs.extend(finite)
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    feeds = {**FEEDS, "x": FEEDS["x"] * np.float32(factor)}
    for name, tensor in portable_session(path).run(feeds).items():
        assert np.abs(tensor).max() <= bounds[name] * (1 + 1e-5), name


def test_bounds_of_what_is_fed_are_unknown() -> None:
    model = Block(int8=False).model()
    bounds = bounds_of(model.graph)
    assert bounds["LayerNormalization_1"] == pytest.approx(math.sqrt(32))
    graph = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 23]> g (float[2] x) => (float[2] y) { y = Exp(x) }'
    ).graph
    assert bounds_of(graph)["y"] == math.inf


@pytest.mark.parametrize(
    "node",
    [
        "y = Gemm <alpha = 8.0, beta = 0.5, transB = 1> (t, weight, bias)",
        "y = RotaryEmbedding <num_heads = 1> (t, turn, turn)",
    ],
)
def test_bounds_count_a_gemms_factors_and_that_a_turn_enlarges(node: str, tmp_path: Path) -> None:
    shape = "2, 4" if "Gemm" in node else "1, 2, 4"
    model = ir.from_onnx_text(f"""<ir_version: 11, opset_import: ["": 23]>
    g (float[{shape}] x) => (float[A, B{", C" if "Rotary" in node else ""}] y)
      <float[3, 4] weight = {{1, -1, 1, 1, 0, 0, 0, 0, 1, 2, 0, 0}}, float[3] bias = {{9, 0, -9}},
       float[1, 2, 2] turn = {{0.7, 0.7, 0.7, 0.7}}> {{
      t = Tanh (x)
      {node}
    }}""")
    ir.save(model, tmp_path / "m.onnx")
    x = np.array([30, -30, 30, 30, -30, 30, 30, -30], np.float32).reshape([int(size) for size in shape.split(", ")])
    reached = float(np.abs(portable_session(tmp_path / "m.onnx").run({"x": x})["y"]).max())
    assert reached > 1.3
    assert reached <= bounds_of(model.graph)["y"] <= 1.2 * reached
