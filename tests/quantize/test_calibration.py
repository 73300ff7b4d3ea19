"""Histograms, ranges, and what calibration says about bad data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quantize_graphs import by_type, images, run, vision_model

from quantize.calibration import Histogram, measure_ranges, observe, require
from quantize.linears import find_linears
from toolkit.errors import StageError, UsageError
from toolkit.types import Calibration

VALUES = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))


def histogram(*arrays):
    made = Histogram()
    for array in arrays:
        made.update(array)
    return made


@given(VALUES, st.sampled_from([50.0, 90.0, 99.0, 99.99, 100.0]))
def test_percentile_is_within_one_bin_of_the_exact_one(values, percent):
    made = histogram(values)
    exact = float(np.percentile(np.abs(values), percent, method="inverted_cdf"))
    assert exact <= made.percentile(percent) * (1 + 1e-6)
    assert made.percentile(percent) <= exact + made.limit / made.counts.size


@given(st.lists(VALUES, min_size=1, max_size=5), st.randoms())
@settings(max_examples=50)
def test_counts_do_not_depend_on_order_or_batching(arrays, random):
    shuffled = list(arrays)
    random.shuffle(shuffled)
    one, other, whole = histogram(*arrays), histogram(*shuffled), histogram(np.concatenate(arrays))
    assert one.limit == other.limit == whole.limit
    assert (one.counts == other.counts).all()
    assert (one.counts == whole.counts).all()
    assert (one.min, one.max) == (whole.min, whole.max)


def test_growing_merges_bins_exactly():
    values = np.linspace(-0.9, 0.9, 1001, dtype=np.float32)
    late, early = histogram(values, np.float32([100.0])), histogram(np.float32([100.0]), values)
    assert late.limit == early.limit == 128.0
    assert (late.counts == early.counts).all()
    assert late.counts.sum() == 1002


def test_zeros_and_nothing_have_range_zero():
    assert histogram(np.zeros(5, np.float32)).percentile(99.9) == 0.0
    assert Histogram().percentile(99.9) == 0.0
    assert Histogram().absmax == 0.0


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
def test_values_that_are_not_finite_are_refused(bad, word):
    with pytest.raises(ValueError, match=word):
        histogram(np.float32([1.0, bad]))


def activations(model):
    return dict.fromkeys(linear.activation for linear in find_linears(model.graph))


def test_state_is_as_large_after_many_batches_as_after_two():
    model = vision_model()
    few, many = (observe(model, activations(model), images(count)) for count in (2, 50))
    assert few.keys() == many.keys()
    for name, state in many.items():
        assert state.counts.nbytes == few[name].counts.nbytes
        assert state.counts.sum() == 25 * few[name].counts.sum()


def test_observed_and_measured_ranges_agree_with_the_tensors_themselves():
    model, data = vision_model(), images(3)
    gelu = by_type(model, "Gelu")[0].outputs[0]
    observed, measured = observe(model, [gelu], data)[gelu.name], measure_ranges(model, [gelu], data)[gelu.name]
    model.graph.outputs.append(gelu)
    exact = np.concatenate([run(model, dict(batch))[gelu.name] for batch in data.batches()])
    assert (observed.min, observed.max) == pytest.approx((exact.min(), exact.max()), rel=1e-5)
    assert (measured.min, measured.max) == pytest.approx((exact.min(), exact.max()), rel=1e-5)


def test_watching_leaves_the_model_as_it_was():
    model = vision_model()
    before = [value.name for value in model.graph.outputs]
    observe(model, activations(model), images(1))
    assert [value.name for value in model.graph.outputs] == before


@pytest.mark.parametrize("watch", [observe, measure_ranges])
def test_nan_names_the_tensor_and_its_module(watch):
    model = vision_model()
    weight = model.graph.initializers["block.fc1.weight"].const_value
    weight.numpy()[0, 0] = np.nan
    gelu = by_type(model, "Gelu")[0].outputs[0]
    with pytest.raises(StageError, match=rf"{gelu.name}.*block\.act.*NaN"):
        watch(model, [gelu], images(1))


def test_an_infinite_range_is_measured_but_not_observed():
    model = vision_model(gain=1e30)
    model.graph.initializers["block.fc2.weight"].const_value.numpy()[:] = 1e30
    product = next(node for node in by_type(model, "MatMul") if "fc2" in node.inputs[1].name).outputs[0]
    assert measure_ranges(model, [product], images(1))[product.name].absmax == np.inf
    with pytest.raises(StageError, match=r"block\.fc2.*Inf"):
        observe(model, [product], images(1))


def test_empty_and_missing_data_are_usage_errors():
    model = vision_model()
    with pytest.raises(UsageError, match="empty"):
        observe(model, activations(model), images(0))
    with pytest.raises(UsageError, match="lacks image"):
        observe(model, activations(model), Calibration(lambda: iter([{"wrong": np.zeros(1)}]), 1, "test"))
    with pytest.raises(UsageError, match=r"'int8'.*no calibration"):
        require(None, "int8")


def test_data_of_the_wrong_shape_is_a_stage_error():
    model = vision_model()
    batch = {"image": np.zeros((1, 3, 15, 16), np.float32)}
    with pytest.raises(StageError, match="batch 0"):
        observe(model, activations(model), Calibration(lambda: iter([batch]), 1, "test"))
