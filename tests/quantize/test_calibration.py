"""Watched activations, and what calibration says about bad data."""

from __future__ import annotations

import numpy as np
import pytest
from quantize_graphs import by_type, images, run, vision_model

from quantize.calibration import measure_ranges, observe, require
from quantize.linears import find_linears
from toolkit.errors import StageError, UsageError
from toolkit.types import Calibration


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
