"""SmoothQuant: exact in fp32 however it is folded, worth its price, and streamed."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch

import numpy as np
import onnx_ir as ir
import pytest
from quantize_graphs import HEADS, SPEC, WIDTH, Builder, by_type, graph_input, images, run, sqnr, vision_model

from quantize.calibration import measure_channels, observe
from quantize.linears import find_linears
from quantize.schemes.int8 import SCHEME
from quantize.smoothing import channel_weights, choose_smoothing, find_groups, smooth
from toolkit.errors import StageError
from toolkit.types import Calibration

LOUD = 5


def tokens(count=3, loud=1.0):
    def batches():
        rng = np.random.default_rng(2)
        for _ in range(count):
            x = rng.normal(size=(2, 16, WIDTH)).astype(np.float32)
            x[..., LOUD] *= loud
            yield {"x": x}

    return Calibration(batches, count, "random tokens")


def model_of(build):
    b = Builder(3)
    x = graph_input("x", ["batch", 16, WIDTH])
    return b.model([x], {"y": build(b, x)}, y=["batch", 16, WIDTH])


def attention_model(loud=50.0):
    model = model_of(lambda b, x: b.attention(x, "attention"))
    weight(model, "attention.v_proj.weight")[:, LOUD] *= loud
    return model


def norm_model(loud=50.0):
    model = model_of(lambda b, x: b.linear(b.layer_norm(x, "norm"), "fc", WIDTH, WIDTH))
    weight(model, "norm.weight")[LOUD] = loud
    weight(model, "norm.bias")[:] = 0.1
    return model


def gelu_model():
    return model_of(lambda b, x: b.linear(b.op("Gelu", x), "fc", WIDTH, WIDTH))


def weight(model, name):
    return model.graph.initializers[name].const_value.numpy()


def smoothed(model, data, modules="*"):
    linears = [linear for linear in find_linears(model.graph) if fnmatch(linear.module, modules)]
    groups = find_groups(linears)
    seen = measure_channels(model, {group.activation: group.width for group in groups}, data)
    divisors = choose_smoothing(groups, seen, 0.8)
    return (*smooth(model.graph, groups, divisors), divisors)


CASES = {
    "norm": (norm_model, 1.0, "1 folded into normalisations, 0 into value projections, 0 by one Mul"),
    "value": (attention_model, 1.0, "0 folded into normalisations, 1 into value projections, 0 by one Mul"),
    "mul": (gelu_model, 50.0, "0 folded into normalisations, 0 into value projections, 1 by one Mul"),
}


@pytest.mark.parametrize("case", CASES)
def test_smoothing_changes_no_result_in_fp32(case):
    make, loud, said = CASES[case]
    model, data = make(), tokens(loud=loud)
    feed = next(tokens(1, loud).batches())
    before = run(model, feed)["y"]
    (step,), renamed, divisors = smoothed(model, data, "*out_proj" if case == "value" else "*")
    assert said in step.reason
    assert len(by_type(model, "Mul")) == len(renamed) == (case == "mul")
    assert all(divisor.max() / divisor.min() > 5 for divisor in divisors.values())
    assert sqnr(before, run(model, feed)["y"]) > 100


@pytest.mark.parametrize("case", CASES)
def test_a_loud_channel_costs_ten_decibels_without_smoothing(case):
    make, loud, _ = CASES[case]
    feed, results = next(tokens(1, loud).batches()), []
    reference = run(make(), feed)["y"]
    for alpha in (None, 0.8):
        model = make()
        replace(SCHEME, config=replace(SCHEME.config, smoothing=alpha)).apply(model, SPEC, tokens(loud=loud), {})
        results.append(sqnr(reference, run(model, feed)["y"]))
    assert results[1] > results[0] + 10


def test_nothing_is_paid_where_no_channel_is_loud():
    model = gelu_model()
    steps = SCHEME.apply(model, SPEC, tokens(), {})
    assert not by_type(model, "Mul")
    assert next(step for step in steps if "smoothed" in step.what).count == 0


def test_a_normalisation_that_others_read_too_is_not_touched():
    def build(b, x):
        normed = b.layer_norm(x, "norm")
        return b.op("Add", normed, b.linear(normed, "fc", WIDTH, WIDTH))

    model, feed = model_of(build), next(tokens(1).batches())
    weight(model, "norm.weight")[LOUD] = 50
    before = run(model, feed)["y"]
    smoothed(model, tokens())
    assert len(by_type(model, "Mul")) == 1
    assert sqnr(before, run(model, feed)["y"]) > 100


def test_fewer_value_heads_than_query_heads_take_a_mul():
    """One value channel feeds several channels of the output, which may need different divisors."""

    def build(b, x):
        off = {"is_causal": 0, "softcap": 0.0, "left_window_size": -1, "right_window_size": -1}
        size = WIDTH // HEADS
        pair = b.weight("to_pair", np.array([0, 0, 2, size], np.int64))
        query = b.heads(b.linear(x, "q", WIDTH, WIDTH))
        key, value = (
            b.op("Transpose", b.op("Reshape", b.linear(x, name, WIDTH, 2 * size), pair), perm=[0, 2, 1, 3])
            for name in "kv"
        )
        mixed = b.op("FusedAttention", query, key, value, domain="toolkit", scale=size**-0.5, **off)
        width = b.weight("to_width", np.array([0, 0, WIDTH], np.int64))
        merged = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), width)
        return b.linear(merged, "out", WIDTH, WIDTH)

    model, feed = model_of(build), next(tokens(1).batches())
    weight(model, "v.weight")[:, LOUD] *= 50
    before = run(model, feed)["y"]
    smoothed(model, tokens(), "out")
    assert len(by_type(model, "Mul")) == 1
    assert sqnr(before, run(model, feed)["y"]) > 100


def test_a_weight_with_other_readers_is_copied():
    def build(b, x):
        shared = b.random("shared", WIDTH, WIDTH)
        return b.op("Add", b.op("MatMul", b.op("Gelu", x), shared), b.op("MatMul", b.op("Tanh", x), shared))

    model, feed = model_of(build), next(tokens(1, 50).batches())
    before = run(model, feed)["y"]
    smoothed(model, tokens(loud=50.0))
    assert "shared_smoothed" in model.graph.initializers
    assert sqnr(before, run(model, feed)["y"]) > 100


def test_dead_channels_keep_their_weights():
    model = gelu_model()
    fed = tokens(loud=0.0)
    before = weight(model, "fc.weight").copy()
    weight(model, "fc.weight")[7] *= 100
    _, _, divisors = smoothed(model, fed)
    (divisor,) = divisors.values()
    assert divisor[LOUD] == 1
    assert divisor[7] < divisor[8]
    assert (weight(model, "fc.weight")[LOUD] == before[LOUD]).all()
    assert np.isfinite(weight(model, "fc.weight")).all()


def test_what_is_measured_does_not_grow_with_the_data_and_is_exact():
    model = gelu_model()
    widths = {group.activation: group.width for group in find_groups(find_linears(model.graph))}
    few, many = (next(iter(measure_channels(model, widths, tokens(count)).values())) for count in (2, 40))
    assert few.absmax.shape == many.absmax.shape == many.squares.shape == (WIDTH,)
    assert many.rows == 20 * few.rows == 40 * 32
    gelu = by_type(model, "Gelu")[0].outputs[0]
    model.graph.outputs.append(gelu)
    exact = np.concatenate([run(model, dict(batch))[gelu.name] for batch in tokens(2).batches()]).reshape(-1, WIDTH)
    np.testing.assert_allclose(few.absmax, np.abs(exact).max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(few.mean_square, np.square(exact).mean(axis=0), rtol=1e-5)


def test_percentiles_are_taken_of_the_divided_activation():
    model = gelu_model()
    gelu = by_type(model, "Gelu")[0].outputs[0]
    divisor = np.linspace(0.5, 2, WIDTH, dtype=np.float32)
    plain, divided = (observe(model, [gelu], tokens(), chosen)[gelu.name] for chosen in (None, {gelu.name: divisor}))
    model.graph.outputs.append(gelu)
    exact = np.concatenate([run(model, dict(batch))[gelu.name] / divisor for batch in tokens().batches()])
    assert divided.absmax == pytest.approx(np.abs(exact).max(), rel=1e-6)
    assert plain.absmax != divided.absmax


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_calibration_by_histograms_runs_and_quantizes_every_linear(method):
    model, widest = attention_model(), attention_model()
    steps = SCHEME.apply(model, SPEC, tokens(), {}, replace(SCHEME.config, calibration=method))
    SCHEME.apply(widest, SPEC, tokens(), {})
    assert any(step.what == f"{method} calibration" for step in steps)
    scales, bounds = (
        [float(node.inputs[1].const_value.numpy()) for node in by_type(each, "QuantizeLinear")]
        for each in (model, widest)
    )
    assert all(scale <= bound * (1 + 1e-6) for scale, bound in zip(scales, bounds, strict=True))
    assert len(by_type(model, "QuantizeLinear")) == 2
    assert all(node.inputs[1].producer().op_type == "DequantizeLinear" for node in by_type(model, "MatMul"))


def test_smoothed_weights_stay_lazy_until_they_are_read():
    model = norm_model()
    smoothed(model, tokens())
    assert isinstance(model.graph.initializers["fc.weight"].const_value, ir.LazyTensor)


def test_calibration_that_is_not_a_number_names_the_module():
    model = vision_model()
    weight(model, "block.fc1.weight")[0, 0] = np.nan
    with pytest.raises(StageError, match=r"block\.gain.*NaN"):
        SCHEME.apply(model, SPEC, images(1), {})


def test_calibration_that_overflows_names_the_module():
    with pytest.raises(StageError, match=r"block\.gain.*Inf"):
        SCHEME.apply(vision_model(gain=3e38), SPEC, images(1), {})


def test_all_groups_of_a_block_together_change_no_result_in_fp32():
    """The value projection is scaled on both sides: for its own input and for the output projection's."""
    model, feed = vision_model(gain=30.0), dict(next(images(1, seed=9).batches()))
    weight(model, "block.norm1.weight")[LOUD] = 50
    weight(model, "block.attention.v_proj.weight")[:, 3] *= 50
    before = run(model, feed)["logits"]
    (step,), _, _ = smoothed(model, images(3))
    assert step.reason.startswith("2 folded into normalisations, 1 into value projections, 2 by one Mul")
    assert sqnr(before, run(model, feed)["logits"]) > 100


def test_channels_weigh_what_the_weights_that_read_them_make_of_an_error():
    model = norm_model()
    groups = find_groups(find_linears(model.graph))
    name = groups[0].activation.name
    divisor = np.linspace(0.5, 2, groups[0].width, dtype=np.float32)
    whole = np.concatenate([linear.weight.const_value.numpy() for linear in groups[0].linears], axis=1)
    squares = np.square(whole * divisor[:, None], dtype=np.float64).sum(axis=1)
    found = channel_weights(groups, {name: divisor})[name]
    assert (found.min() >= 1, found.max()) == (True, 65536)
    np.testing.assert_allclose(found / 65536, squares / squares.max(), atol=1 / 65536)


def test_of_weights_that_are_all_zero_every_channel_counts_the_same():
    model = norm_model()
    groups = find_groups(find_linears(model.graph))
    for linear in groups[0].linears:
        linear.weight.const_value.numpy()[:] = 0
    assert (channel_weights(groups, {})[groups[0].activation.name] == 65536).all()
