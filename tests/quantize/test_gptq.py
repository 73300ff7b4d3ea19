"""GPTQ and AWQ on correlated inputs, and the walk that gathers those inputs behind rounded weights."""

from __future__ import annotations

import numpy as np
import pytest
from decoder_graphs import decoder_model, sentences
from quantize_graphs import Builder, graph_input, run

from quantize.awq import choose_factor
from quantize.blocks import Grid, codes, dequantize, nearest, scales
from quantize.gptq import Hessian, gptq, output_error
from quantize.linears import find_linears
from quantize.sequential import walk
from quantize.smoothing import find_groups
from toolkit.errors import StageError, UsageError
from toolkit.types import Calibration


def correlated(rows=600, width=64, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, 12)) @ rng.normal(size=(12, width)) + 0.1 * rng.normal(size=(rows, width))).astype(
        np.float32
    )


def seen(rows):
    hessian = Hessian(rows.shape[1])
    for part in np.split(rows, [200, 300]):
        hessian.add(part.reshape(2, -1, rows.shape[1]))
    return hessian


def weight(width=64, columns=48, seed=1):
    return np.random.default_rng(seed).normal(size=(width, columns)).astype(np.float32)


def test_the_hessian_is_the_sum_of_outer_products():
    rows = correlated()
    hessian = seen(rows)
    assert hessian.rows == 600
    np.testing.assert_allclose(hessian.total, rows.T.astype(np.float64) @ rows, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(hessian.mean_square, np.square(rows).mean(0), rtol=1e-4)


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 16), Grid(4, 32, symmetric=False)], ids=str)
def test_gptq_leaves_less_error_on_unseen_rows_than_rounding_to_nearest(grid):
    array, rows, unseen = weight(), correlated(), correlated()[300:]
    integers, blocks = gptq(array, seen(rows[:300]), grid)
    assert integers.min() >= grid.lowest
    assert integers.max() <= grid.highest
    plain = dequantize(*nearest(array, grid))
    ours = dequantize(integers, blocks)
    errors = [np.square(unseen @ each - unseen @ array).sum() for each in (ours, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_gptq_on_uncorrelated_inputs_rounds_to_nearest():
    hessian = Hessian(64)
    hessian.total += np.eye(64)
    hessian.rows = 64
    array = weight()
    integers, blocks = gptq(array, hessian, Grid(4, 32))
    assert np.array_equal(integers, codes(array, blocks))


def test_channels_that_were_never_active_or_always_equal_do_no_harm():
    rows = correlated()
    rows[:, 5] = 0
    rows[:, 9] = rows[:, 8]
    integers, blocks = gptq(weight(), seen(rows), Grid(4, 32))
    error, energy = output_error(weight(), dequantize(integers, blocks), seen(rows))
    assert error < 0.01 * energy
    dead, _ = gptq(weight(), Hessian(64), Grid(4, 32))
    assert np.array_equal(dead, nearest(weight(), Grid(4, 32))[0])


def test_output_error_is_that_of_the_products():
    rows, array = correlated(), weight()
    rounded = dequantize(*nearest(array, Grid(4, 32)))
    error, energy = output_error(array, rounded, seen(rows))
    assert error == pytest.approx(np.square(rows @ (rounded - array)).sum(), rel=1e-3)
    assert energy == pytest.approx(np.square(rows @ array).sum(), rel=1e-3)


def test_activations_that_are_not_finite_are_refused():
    for bad, name in ((np.nan, "NaN"), (np.inf, "Inf")):
        rows = correlated()
        rows[3, 3] = bad
        with pytest.raises(ValueError, match=name):
            Hessian(64).add(rows)


def test_awq_scales_loud_channels_and_lowers_the_error_of_the_products():
    rng = np.random.default_rng(4)
    loud = np.where(np.arange(64) % 16 == 3, 30.0, 1.0)
    rows = (rng.normal(size=(500, 64)) * loud).astype(np.float32)
    array, grid, hessian = weight(), Grid(4, 32), seen(rows)
    factor = choose_factor([array], hessian, grid)
    assert factor is not None
    assert factor[loud > 1].min() > 1.2 > factor[loud == 1].max()
    raised = array * factor[:, None]
    blocks = scales(raised, grid)
    ours = dequantize(codes(raised, blocks), blocks) / factor[:, None]
    errors = [output_error(array, each, hessian)[0] for each in (ours, dequantize(*nearest(array, grid)))]
    assert errors[0] < 0.8 * errors[1]


def test_awq_leaves_equal_channels_alone():
    rows = np.random.default_rng(4).choice([-1.0, 1.0], (500, 64)).astype(np.float32)
    assert choose_factor([weight()], seen(rows), Grid(4, 32)) is None


def groups_of(model):
    return find_groups(each for each in find_linears(model.graph) if each.node.op_type == "MatMul")


def watched(model, names, calibration):
    """What the whole graph computes for these values, batch by batch."""
    for name in names:
        value = next(v for node in model.graph for v in node.outputs if v.name == name)
        if value not in model.graph.outputs:
            model.graph.outputs.append(value)
    return [run(model, dict(batch)) for batch in calibration.batches()]


def test_the_walk_sees_what_a_run_of_the_whole_graph_computes():
    model, data = decoder_model(), sentences(3)
    found = {}
    walk(model, groups_of(model), data, lambda group, hessian: found.update({group.activation.name: hessian}) or {})
    assert list(found) == [str(group.activation.name) for group in groups_of(model)]
    outputs = watched(decoder_model(), list(found), data)
    for name, hessian in found.items():
        rows = np.concatenate([each[name].reshape(-1, each[name].shape[-1]) for each in outputs])
        np.testing.assert_allclose(hessian.total, rows.T @ rows, rtol=1e-3, atol=1e-3)


def test_later_stretches_run_behind_the_weights_that_were_answered():
    model, data = decoder_model(), sentences(2)
    replaced, found = {}, {}

    def halve(group, hessian):
        found[group.activation.name] = hessian
        made = {str(each.weight.name): each.weight.const_value.numpy() * 0.5 for each in group.linears}
        replaced.update(made)
        return made

    walk(model, groups_of(model), data, halve)
    other = decoder_model(weights=replaced)
    outputs = watched(other, list(found), data)
    for name, hessian in found.items():
        rows = np.concatenate([each[name].reshape(-1, each[name].shape[-1]) for each in outputs])
        np.testing.assert_allclose(hessian.total, rows.T @ rows, rtol=1e-3, atol=1e-3)


def masked_model(tokens):
    """A Linear that reads [batch, tokens, 32], or what `tokens` says of its shape."""
    b = Builder()
    x, mask = graph_input("x", ["batch", "tokens", 32]), graph_input("attention_mask", ["batch", "tokens"])
    shape = b.weight("shape", np.array([*tokens, 32]))
    kept = b.op("Mul", b.op("Abs", x), b.op("Unsqueeze", mask, b.weight("axis", np.array([2]))))
    read = b.op("Reshape", b.op("Abs", x), shape)
    return b.model([x, mask], {"y": b.op("Add", b.linear(read, "one", 32, 32), b.op("Reshape", kept, shape))})


@pytest.mark.parametrize("tokens", [(0, 0), (-1,)], ids=["batch and tokens", "rows"])
def test_rows_of_padding_are_not_counted(tokens):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(2, 6, 32)).astype(np.float32), np.ones((2, 6), np.float32)
    mask[1, 4:] = 0
    data = Calibration(lambda: iter([{"x": x, "attention_mask": mask}]), 1, "one batch")
    found, model = [], masked_model(tokens)
    walk(model, groups_of(model), data, lambda group, hessian: found.append(hessian) or {})
    # The group's stretch does not need the mask, so the batch's own is used.
    rows = np.abs(x)[mask.astype(bool)]
    assert found[0].rows == 10
    np.testing.assert_allclose(found[0].total, rows.T @ rows, rtol=1e-4)


def test_nan_in_an_activation_names_the_tensor_and_a_missing_input_is_a_usage_error():
    model = masked_model((0, 0))
    mask = np.ones((1, 2), np.float32)
    bad = {"x": np.full((1, 2, 32), np.nan, np.float32), "attention_mask": mask}
    with pytest.raises(StageError, match="holds NaN on calibration batch 0"):
        walk(model, groups_of(model), Calibration(lambda: iter([bad]), 1, "bad"), lambda *_: {})
    with pytest.raises(UsageError, match="lacks x"):
        walk(model, groups_of(model), Calibration(lambda: iter([{"attention_mask": mask}]), 1, "no x"), lambda *_: {})
