"""Each token's vector rounded by its own range: its numbers, its graphs, and what the engine makes of them."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from quantize_graphs import SPEC, WIDTH, Builder, by_type, graph_input, images, run, save_exported, sqnr, vision_model

from quantize import quantize
from quantize.arithmetic import affine_scale, dequantize
from quantize.linears import find_linears
from quantize.schemes.int8 import SCHEME
from quantize.smoothing import find_groups
from quantize.smoothing_search import search_smoothing
from runtimes._onnxruntime.lowering import lower_graph
from runtimes._onnxruntime.session import OrtSession
from runtimes._onnxruntime.tapped import TappedGraph
from runtimes.ort_cpu.rules import rules_for
from toolkit.compare.modules import Modules
from toolkit.errors import StageError, UsageError
from toolkit.types import Calibration

TENSOR = replace(SCHEME.config, activations="uint8")
TOKEN = replace(TENSOR, ranges="per-token")
PLAIN = replace(TOKEN, smoothing=None, rounding="nearest")
ENCODER = replace(SPEC, kind="encoder")
COLUMNS = 24


def linear_model(opset=23, width=WIDTH):
    b = Builder(3)
    x = graph_input("x", ["batch", 16, width])
    y = b.linear(x, "fc", width, COLUMNS)
    model = b.model([x], {"y": y}, y=["batch", 16, COLUMNS])
    model.opset_imports[""] = opset
    return model


def uneven(count=4, width=WIDTH):
    """Tokens of unlike size and offset: a hundred times from the quietest to the loudest, one of them all zeros."""

    def batches():
        rng = np.random.default_rng(2)
        sizes = np.geomspace(0.1, 10, 16)[:, None] * np.r_[0.0, np.ones(15)][:, None]
        for _ in range(count):
            yield {"x": ((rng.normal(size=(2, 16, width)) + 0.5) * sizes).astype(np.float32)}

    return Calibration(batches, count, "uneven tokens")


def unseen():
    return list(uneven(5).batches())[-1]


def answers(graph, feed, output="y"):
    with closing(OrtSession(graph.path)) as session:
        return session.run(feed)[output]


def own_linears(lowered):
    names = Counter(node.op_type for node in ir.load(lowered.path).graph)
    return {name: count for name, count in names.items() if name.startswith("Int8Linear")}


def quantized(tmp_path, model, recipe, data=None, name="out"):
    exported = save_exported(model, tmp_path / f"{name}-exported")
    return exported, quantize(exported, "int8", data or uneven(), tmp_path / name, {}, recipe)


def test_every_token_has_the_scale_and_zero_point_of_its_own_range(tmp_path):
    exported, made = quantized(tmp_path, linear_model(), PLAIN)
    x = unseen()["x"]
    scale, zero = affine_scale(x.min(-1, keepdims=True), x.max(-1, keepdims=True))
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    weights = {name: value.const_value.numpy() for name, value in ir.load(made.path).graph.initializers.items()}
    weight = dequantize(weights["fc.weight_int8"], weights["fc.weight_scale"], 1)
    want = ((codes - zero) * scale).astype(np.float32) @ weight + weights["fc.bias"]
    found = answers(made, {"x": x})
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert sqnr(run(exported.path, {"x": x})["y"], found) > 35


def test_a_quiet_token_keeps_its_accuracy_beside_a_loud_one(tmp_path):
    x = unseen()
    for name, recipe, least, most in (("token", TOKEN, 35, 99), ("tensor", TENSOR, 0, 20)):
        exported, made = quantized(tmp_path, linear_model(), recipe, name=name)
        assert least < sqnr(run(exported.path, x)["y"][:, 1], answers(made, x)[:, 1]) < most


def test_the_engine_answers_what_the_graph_does_and_zeros_stay_the_bias(tmp_path):
    _, made = quantized(tmp_path, linear_model(), TOKEN)
    lowered = lower_graph(made, tmp_path / "lowered", "ort-cpu", rules_for(ENCODER))
    names = [node.op_type for node in ir.load(lowered.path).graph]
    assert own_linears(lowered) == {"Int8LinearTokens": 1}
    assert not {"QuantizeLinear", "ReduceMin", "Cast", "MatMulIntegerToFloat"} & set(names)
    expected, found = (answers(graph, unseen()) for graph in (made, lowered))
    assert sqnr(expected, found) > 60
    bias = ir.load(made.path).graph.initializers["fc.bias"].const_value.numpy()
    np.testing.assert_array_equal(found[:, 0], np.broadcast_to(bias, (2, COLUMNS)))


def test_two_linears_of_one_tensor_measure_it_each(tmp_path):
    b = Builder(3)
    x = graph_input("x", ["batch", 16, WIDTH])
    y, z = (b.linear(x, name, WIDTH, COLUMNS) for name in ("fc1", "fc2"))
    model = b.model([x], {"y": b.op("Mul", y, b.op("Sigmoid", z))}, y=["batch", 16, COLUMNS])
    _, made = quantized(tmp_path, model, PLAIN)
    lowered = lower_graph(made, tmp_path / "lowered", "ort-cpu", rules_for(ENCODER))
    assert own_linears(lowered) == {"Int8LinearTokens": 2}
    assert sqnr(*(answers(graph, unseen()) for graph in (made, lowered))) > 60


def test_a_convolution_keeps_one_calibrated_range(tmp_path):
    exported, made = quantized(tmp_path, vision_model(), TOKEN, images(4))
    nodes = by_type(ir.load(made.path), "QuantizeLinear")
    blocks = [node.attributes.get_int("block_size", 0) for node in nodes]
    assert set(blocks) > {0}
    steps = {step.what: step.count for step in made.steps}
    assert steps["minmax calibration"] == blocks.count(0) == 1
    assert steps["ranges measured as they come"] == len(blocks) - 1
    lowered = lower_graph(made, tmp_path / "lowered", "ort-cpu", rules_for(SPEC))
    assert own_linears(lowered) == {"Int8LinearQkvTokens": 1, "Int8LinearTokens": 4}
    feed = dict(next(images(1, seed=9).batches()))
    expected, found = (answers(graph, feed, "logits") for graph in (made, lowered))
    assert sqnr(expected, run(lowered.path, feed)["logits"]) > 60  # the functions
    assert sqnr(expected, found) > 40  # the kernels, of which attention's rounds to bfloat16
    assert sqnr(run(exported.path, feed)["logits"], found) > 25


@pytest.mark.parametrize("method", ["mse", "entropy", "percentile"])
def test_where_only_the_image_has_a_calibrated_range_every_method_finds_it(tmp_path, method):
    _, made = quantized(tmp_path, vision_model(), replace(PLAIN, calibration=method), images(2))
    assert {step.what: step.count for step in made.steps}[f"{method} calibration"] == 1


def test_an_old_opset_has_no_such_scales(tmp_path):
    with pytest.raises(UsageError, match="needs opset 21 or later, and this graph is of opset 20") as caught:
        quantized(tmp_path, linear_model(opset=20), TOKEN)
    assert "--opset 21" in caught.value.hint


def test_a_linear_of_more_inputs_than_the_kernel_sums_is_refused(tmp_path):
    _, made = quantized(tmp_path, linear_model(width=32769), PLAIN, uneven(1, 32769))
    with pytest.raises(StageError, match="reads more than 32768 inputs"):
        lower_graph(made, tmp_path / "lowered", "ort-cpu", rules_for(ENCODER))


def test_strengths_are_searched_for_ranges_of_tokens():
    """What a loud token costs the others under one range, and makes worth smoothing, costs nothing by tokens."""
    model = linear_model()
    groups, data = find_groups(find_linears(model.graph)), uneven(8)
    found = {recipe.ranges: search_smoothing(model, groups, recipe, data) for recipe in (TENSOR, TOKEN)}
    again = search_smoothing(model, groups, TOKEN, data)
    assert found["per-token"].keys() == again.keys()
    assert all(np.array_equal(array, again[name]) for name, array in found["per-token"].items())
    assert set(found["per-token"]) <= set(found["per-tensor"])


def test_what_the_kernel_cannot_take_is_refused_by_name(tmp_path):
    b = Builder(3)
    x, bias = graph_input("x", ["batch", WIDTH]), b.random("bias", COLUMNS)
    computed = b.op("Tanh", bias)
    computed.shape = ir.Shape([COLUMNS])
    y = b.op("Gemm", x, b.random("weight", COLUMNS, WIDTH), computed, transB=1)
    rows = Calibration(lambda: iter([{"x": unseen()["x"].reshape(-1, WIDTH)}]), 1, "rows")
    _, made = quantized(tmp_path, b.model([x], {"y": y}, y=["batch", COLUMNS]), PLAIN, rows)
    with pytest.raises(StageError, match="measures each token's range, and its weight or bias is computed") as caught:
        lower_graph(made, tmp_path / "lowered", "ort-cpu", rules_for(ENCODER))
    assert "ranges=per-tensor" in caught.value.hint


def test_a_tensor_whose_type_nobody_wrote_down_is_measured_too(tmp_path):
    b = Builder(3)
    x = graph_input("x", ["batch", 16, WIDTH])
    hidden = b.op("Tanh", x)
    hidden.type = hidden.shape = None
    y = b.linear(hidden, "fc", WIDTH, COLUMNS)
    _, made = quantized(tmp_path, b.model([x], {"y": y}, y=["batch", 16, COLUMNS]), PLAIN)
    lowered = lower_graph(made, tmp_path / "lowered", "ort-cpu", rules_for(ENCODER))
    assert own_linears(lowered) == {"Int8LinearTokens": 1}
    assert sqnr(*(answers(graph, unseen()) for graph in (made, lowered))) > 60


def test_who_looks_inside_finds_every_module_and_the_tensor_that_enters_it(tmp_path):
    model = vision_model()
    model.producer_name = "toolkit"
    _, made = quantized(tmp_path, model, TOKEN, images(4))
    lowered = lower_graph(made, tmp_path / "lowered", "ort-cpu", rules_for(SPEC))
    tapped = TappedGraph(lowered.path, rounded=False)
    found = {module.path: module for module in Modules(tapped.proto).modules}
    linears = {f"block.attention.{name}_proj" for name in ("q", "k", "v", "out")} | {"block.fc1", "block.fc2"}
    assert linears <= set(found)
    assert all(found[path].entering for path in linears)
    assert len({found[f"block.attention.{name}_proj"].entering for name in "qkv"}) == 1
    feed = dict(next(images(1, seed=9).batches()))
    taps = [found[path].tensor for path in sorted(linears)]
    with closing(tapped.session([*taps, "logits"])) as session:
        inner = session.run(feed)
    assert {inner[tap].shape[-1] for tap in taps} == {WIDTH, 64}
    assert sqnr(answers(lowered, feed, "logits"), inner["logits"]) > 60
