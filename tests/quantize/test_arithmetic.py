"""Scales and rounding: properties that hold for every tensor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantize.arithmetic import channel_absmax, dequantize, quantize_activation, quantize_weight, symmetric_scale

FLOATS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FLOATS)


@given(MATRICES, st.sampled_from([0, 1]))
def test_a_weight_comes_back_within_half_a_step_of_its_channel(weight, axis):
    scale = symmetric_scale(channel_absmax(weight, axis))
    quantized = quantize_weight(weight, scale, axis)
    steps = np.expand_dims(scale, 1 - axis)
    assert quantized.dtype == np.int8
    assert scale.shape == (weight.shape[axis],)
    assert quantized.min() >= -127
    assert (np.abs(dequantize(quantized, scale, axis) - weight) <= steps * (0.5 + 1e-4)).all()


@given(MATRICES)
def test_negating_a_weight_negates_its_integers(weight):
    scale = symmetric_scale(channel_absmax(weight, 1))
    assert (quantize_weight(-weight, scale, 1) == -quantize_weight(weight, scale, 1)).all()


@given(hnp.arrays(np.float32, 20, elements=FLOATS), st.floats(0.1, 1e3))
def test_activations_saturate_outside_the_range_and_round_within(values, bound):
    scale = symmetric_scale(bound)
    restored = dequantize(quantize_activation(values, scale), scale)
    inside = np.abs(values) <= bound
    assert (np.abs(restored - values)[inside] <= scale * (0.5 + 1e-4)).all()
    assert (np.abs(restored) <= 128 * scale * (1 + 1e-6)).all()


def test_rounding_is_half_to_even_as_in_quantize_linear():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    assert quantize_activation(values, np.float32(1)).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("absmax", [0.0, 1e-44])
def test_a_range_too_small_for_a_scale_gets_scale_one(absmax):
    assert symmetric_scale(absmax) == 1.0


@pytest.mark.parametrize("absmax", [np.nan, np.inf, -1.0])
def test_a_range_that_is_not_a_magnitude_is_refused(absmax):
    with pytest.raises(ValueError, match="finite"):
        symmetric_scale(np.array([1.0, absmax]))


def test_nan_in_a_weight_stays_visible():
    weight = np.ones((3, 4), np.float32)
    weight[1, 2] = np.nan
    assert np.isnan(channel_absmax(weight, 1)).tolist() == [False, False, True, False]
