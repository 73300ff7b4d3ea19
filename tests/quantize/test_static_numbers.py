"""The numbers that static int8 chooses: zero points, rounding by data, and strengths found on real rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from quantize_graphs import SPEC, WIDTH, Builder, by_type, graph_input, images, run, save_exported, sqnr, vision_model

from quantize import quantize
from quantize.arithmetic import affine_scale, channel_absmax, dequantize, quantize_weight, symmetric_scale
from quantize.calibration import measure_channels
from quantize.channel_rounding import round_by_data, round_channels
from quantize.gptq import Hessian
from quantize.linears import find_linears
from quantize.sampled_rows import first_row, sample_rows
from quantize.schemes.int8 import SCHEME
from quantize.smoothing import find_groups
from quantize.smoothing_search import product_error, search_smoothing
from runtimes._onnxruntime.lowering import lower_graph
from runtimes.ort_cpu.rules import rules_for
from toolkit.recipe.own import own_recipe
from toolkit.target import parse_target
from toolkit.types import Calibration

UNSIGNED = replace(SCHEME.config, activations="uint8")
PLAIN = replace(UNSIGNED, smoothing=None, rounding="nearest")
ENCODER = replace(SPEC, kind="encoder")


def gelu_model(loud=1.0):
    """A Gelu before its Linear; `loud` multiplies one channel of what the Gelu reads."""
    b = Builder(3)
    x = graph_input("x", ["batch", 16, WIDTH])
    raised = b.op("Mul", x, b.weight("loud", np.where(np.arange(WIDTH) == 5, loud, 1).astype(np.float32)))
    made = b.linear(b.op("Gelu", raised), "fc", WIDTH, 48)
    return b.model([x], {"y": made}, y=["batch", 16, 48])


def tokens(count=16, *, masked=False):
    def batches():
        rng = np.random.default_rng(2)
        mix = rng.normal(size=(6, WIDTH))
        for _ in range(count):
            x = rng.uniform(-1, 1, (2, 16, 6)) @ mix + 0.1 * rng.normal(size=(2, 16, WIDTH))
            mask = {"attention_mask": np.repeat([[1, 0]], 2, 0).repeat(8, 1).astype(np.int64)} if masked else {}
            yield {"x": x.astype(np.float32), **mask}

    return Calibration(batches, count, "random tokens")


def unseen():
    return list(tokens(17).batches())[-1]


@pytest.mark.parametrize(("low", "high"), [(-0.17, 5.0), (0.0, 1.0), (0.5, 2.0), (-3.0, -1.0), (-2.0, 2.0), (0.0, 0.0)])
def test_an_affine_scale_covers_the_range_and_keeps_zero(low, high):
    scale, zero = affine_scale(low, high)
    assert (scale.dtype, zero.dtype, scale.shape, zero.shape) == (np.float32, np.uint8, (), ())
    ends = (np.array([0, 255]) - float(zero)) * scale
    assert ends[0] <= min(low, 0) + 0.51 * scale
    assert ends[1] >= max(high, 0) - 0.51 * scale
    with pytest.raises(ValueError, match="finite"):
        affine_scale(low, np.inf)


def test_unsigned_activations_have_zero_points_and_halve_the_error_behind_gelu():
    plain, data = gelu_model(), tokens()
    expected = run(plain, unseen())["y"]
    answers = {}
    for dtype in ("int8", "uint8"):
        model = gelu_model()
        replace(SCHEME, config=replace(PLAIN, activations=dtype)).apply(model, SPEC, data, {})
        (node,) = by_type(model, "QuantizeLinear")
        assert node.inputs[2].dtype == node.outputs[0].dtype == ir.DataType[dtype.upper()]
        weight = find_weight(model)
        answers[dtype] = sqnr(expected, exact(model, weight)), int(node.inputs[2].const_value.numpy())
    assert answers["int8"][1] == 0 < answers["uint8"][1] < 20
    assert answers["uint8"][0] > answers["int8"][0] + 4


def find_weight(model):
    return next(node for node in by_type(model, "DequantizeLinear") if node.inputs[0].is_initializer())


def exact(model, dequantize_node):
    """The answer with the weight as it was, so that only the activation's rounding is left."""
    plain = gelu_model().graph.initializers["fc.weight"].const_value
    value = ir.Value(name="plain", type=ir.TensorType(ir.DataType.FLOAT), shape=plain.shape, const_value=plain)
    model.graph.register_initializer(value)
    for use in list(dequantize_node.outputs[0].uses()):
        use.node.replace_input_with(use.idx, value)
    return run(model, unseen())["y"]


def test_the_lowered_graph_answers_what_the_unsigned_graph_does(tmp_path):
    exported = save_exported(vision_model(), tmp_path / "exported")
    made = quantize(exported, "int8", images(4), tmp_path / "out", {}, UNSIGNED)
    lowered = lower_graph(made, tmp_path / "lowered", "ort-cpu", rules_for(SPEC))
    feed = dict(next(images(1, seed=9).batches()))
    expected, answers = (run(graph.path, feed)["logits"] for graph in (made, lowered))
    assert sqnr(expected, answers) > 60
    assert sqnr(run(exported.path, feed)["logits"], answers) > 25
    again = quantize(exported, "int8", images(4), tmp_path / "again", {}, UNSIGNED)
    assert again.sha256 == made.sha256


def test_runtimes_that_take_unsigned_activations_say_so():
    own = {name: own_recipe(parse_target(f"{name}-int8"), ENCODER) for name in ("ort-cpu", "openvino", "trt")}
    assert [own[name].activations for name in own] == ["uint8", "uint8", "int8"]
    assert own["ort-cpu"] == own["openvino"] == replace(own["trt"], activations="uint8")


def test_rounding_by_channels_lowers_the_error_on_unseen_correlated_rows():
    rng = np.random.default_rng(4)
    rows = (rng.normal(size=(600, 8)) @ rng.normal(size=(8, 64)) + 0.1 * rng.normal(size=(600, 64))).astype(np.float32)
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    hessian = Hessian(64)
    hessian.add(rows[:300])
    integers, scale = round_channels(weight, hessian)
    plain = symmetric_scale(channel_absmax(weight, 1))
    nearest = dequantize(quantize_weight(weight, plain, 1), plain, 1)
    ours = dequantize(integers, scale, 1)
    errors = [np.square(rows[300:] @ (each - weight)).sum() for each in (ours, nearest)]
    assert errors[0] < 0.5 * errors[1]
    assert (integers.dtype, integers.min() >= -127) == (np.int8, True)


def test_weights_are_rounded_whichever_way_a_gemm_holds_them():
    b = Builder(5)
    x = graph_input("x", ["batch", WIDTH])
    weight = b.random("weight", WIDTH, 24)
    turned = b.weight("turned", np.ascontiguousarray(weight.const_value.numpy().T))
    products = [b.op("MatMul", x, weight), b.op("Gemm", x, turned, transB=1)]
    model = b.model([x], {"y": b.op("Concat", *products, axis=-1)}, y=["batch", 48])
    rows = Calibration(lambda: iter([{"x": unseen()["x"].reshape(-1, WIDTH)}]), 1, "rows")
    made = round_by_data(model, find_linears(model.graph), rows)
    (first, scale), (second, other) = made[weight], made[turned]
    assert np.array_equal(first, second.T)
    assert np.array_equal(scale, other)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_strength_is_never_worse_than_none_on_the_rows_that_it_was_scored_on(dtype):
    model, data = gelu_model(loud=40.0), tokens()
    recipe = replace(UNSIGNED, activations=dtype)
    (group,) = groups = find_groups(find_linears(model.graph))
    found = search_smoothing(model, groups, recipe, data)
    halves = [replace(data, batches=lambda first=first: list(data.batches())[first::2]) for first in (0, 1)]
    name = group.activation.name
    ranges = measure_channels(model, {group.activation: WIDTH}, halves[0])[name]
    rows = sample_rows(model, groups, {name: 1}, halves[1])[name]
    weight = model.graph.initializers["fc.weight"].const_value.numpy()
    ones = np.ones(WIDTH, np.float32)
    errors = [product_error(weight, rows, ranges.range(each), each, recipe) for each in (found[name], ones)]
    assert errors[0] < 0.6 * errors[1]
    again = search_smoothing(model, groups, recipe, data)
    assert np.array_equal(found[name], again[name])


def test_equal_channels_are_left_alone():
    model, rng = gelu_model(), np.random.default_rng(6)
    signs = [{"x": rng.choice([-1.0, 1.0], (2, 16, WIDTH)).astype(np.float32)} for _ in range(4)]
    data = Calibration(lambda: iter(signs), 4, "signs")
    assert not search_smoothing(model, find_groups(find_linears(model.graph)), UNSIGNED, data)


def test_sampled_rows_are_real_and_without_padding():
    b = Builder(3)
    x, mask = graph_input("x", ["batch", 16, WIDTH]), graph_input("attention_mask", ["batch", 16], ir.DataType.INT64)
    model = b.model([x, mask], {"y": b.linear(x, "fc", WIDTH, 8)}, y=["batch", 16, 8])
    data = tokens(2, masked=True)
    rows = sample_rows(model, find_groups(find_linears(model.graph)), {"x": 3}, data)["x"]
    expected = []
    for index, batch in enumerate(data.batches()):
        picked = slice(first_row(index, 3), None, 3)
        kept = batch["attention_mask"].reshape(-1)[picked].astype(bool)
        expected.extend(batch["x"].reshape(-1, WIDTH)[picked][kept])
    assert np.array_equal(rows, np.array(expected))
