"""Histograms of both signs, and the ranges that 8 bits are spread over."""

from __future__ import annotations

from functools import cache
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantize.clipping import Density, entropy_ends
from quantize.histogram import Histogram
from toolkit.types import CalibrationMethod

METHODS = get_args(CalibrationMethod)
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
    assert made.percentile(percent) <= exact + made.width


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


def test_growing_keeps_the_sides_apart():
    values = np.float32([-3e-7, -0.4, 0.2, 0.3, 5e-7])
    late, early = histogram(values, np.float32([-100.0])), histogram(np.float32([-100.0]), values)
    assert (late.counts == early.counts).all()
    middle = late.counts.size // 2
    assert late.counts[:middle].sum() == 2
    assert late.counts[middle] == 2
    assert late.counts[middle + 1 :].sum() == 2


@given(st.lists(VALUES, min_size=1, max_size=4), st.booleans(), st.sampled_from(METHODS))
@settings(max_examples=60, deadline=None)
def test_ranges_do_not_depend_on_order_and_hold_0_and_only_what_was_seen(arrays, symmetric, method):
    made = histogram(*arrays).range(method, symmetric=symmetric)
    assert made == histogram(*arrays[::-1]).range(method, symmetric=symmetric)
    whole = np.concatenate(arrays)
    low, high = (-abs(whole).max(), abs(whole).max()) if symmetric else (whole.min(), whole.max())
    assert min(low, 0) <= made.min <= 0 <= made.max <= max(high, 0)
    assert not symmetric or made.min == -made.max


@cache
def normal(count=100_000):
    return np.random.default_rng(0).normal(size=count).astype(np.float32)


def with_outlier():
    return np.append(normal(), np.float32(25))


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_far_outlier_is_cut_off_by_entropy_and_mse_but_not_by_minmax(symmetric):
    ends = {method: histogram(with_outlier()).range(method, symmetric=symmetric).max for method in METHODS}
    assert ends["minmax"] == 25.0
    assert ends["mse"] < 22.5
    assert ends["entropy"] < 6


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (-1, 0)])
def test_of_an_even_spread_nothing_is_cut_off(method, symmetric, low, high):
    made = histogram(np.linspace(low, high, 200_001, dtype=np.float32))
    found = made.range(method, symmetric=symmetric)
    assert found.max >= (1 if symmetric else high) - made.width
    assert found.min <= (-1 if symmetric else low) + made.width


@pytest.mark.parametrize("method", METHODS)
def test_what_has_one_sign_has_all_steps_on_its_side(method):
    found = histogram(np.maximum(normal(), 0)).range(method, symmetric=False)
    assert found.min == 0.0
    assert 3 < found.max <= normal().max()
    mirrored = histogram(np.minimum(-normal(), 0)).range(method, symmetric=False)
    assert (mirrored.min, mirrored.max) == (pytest.approx(-found.max, rel=0.1), 0.0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_zeros_and_constants_keep_their_own_value(method, symmetric):
    nothing, zeros = Histogram(), histogram(np.zeros(9, np.float32))
    constant = histogram(np.full(9, -3.3, np.float32)).range(method, symmetric=symmetric)
    assert all(made.range(method, symmetric=symmetric).absmax == 0 for made in (nothing, zeros))
    assert constant.min == np.float32(-3.3)
    assert constant.max == (np.float32(3.3) if symmetric else 0)


def squared_error(values, low, high, symmetric):
    """The mean squared error of really rounding the values to int8 or uint8."""
    steps, lowest = (127, -127) if symmetric else (255, 0)
    scale = high / steps if symmetric else (high - low) / steps
    zero = 0 if symmetric else round(-low / scale)
    codes = np.clip(np.rint(values / scale) + zero, lowest, lowest + 254 if symmetric else 255)
    return float(np.mean(np.square((codes - zero) * scale - values)))


def spread(name):
    generator = np.random.default_rng(3)
    return {
        "normal": normal(20_000),
        "outlier": with_outlier()[-20_000:],
        "heavy": generator.standard_t(3, 20_000),
        "gelu": np.where(normal(20_000) > 0, normal(20_000), 0.1 * np.tanh(normal(20_000))),
        "skewed": generator.gamma(2, size=20_000) - 1,
    }[name].astype(np.float32)


@pytest.mark.parametrize("name", ["normal", "outlier", "heavy", "gelu", "skewed"])
def test_mse_is_as_good_as_the_best_of_many_thresholds(name):
    values = spread(name)
    made = histogram(values)
    bounds = made.absmax * np.linspace(0.01, 1, 200)
    best = min(squared_error(values, -bound, bound, True) for bound in bounds)
    found = made.range("mse", symmetric=True)
    assert squared_error(values, found.min, found.max, True) <= 1.02 * best


@pytest.mark.parametrize("name", ["normal", "outlier", "heavy", "gelu", "skewed"])
def test_two_sided_mse_is_as_good_as_the_best_of_many_pairs(name):
    values = spread(name)[-5_000:]
    made = histogram(values)
    shares = np.linspace(0.2, 1, 25)
    best = min(squared_error(values, made.min * low, made.max * high, False) for low in shares for high in shares)
    found = made.range("mse", symmetric=False)
    assert squared_error(values, found.min, found.max, False) <= 1.03 * best


def divergence(counts, stop, levels):
    """KL(P || Q) bin by bin, as Migacz's slides put it."""
    reference, expected = counts[:stop].copy(), np.zeros(stop)
    reference[-1] += counts[stop:].sum()
    level = np.arange(stop) * levels // stop
    for index in range(levels):
        held = (level == index) & (counts[:stop] > 0)
        expected[held] = counts[:stop][level == index].sum() / max(held.sum(), 1)
    shares, expected = reference / reference.sum(), expected / expected.sum()
    held = shares > 0
    return (
        np.inf if (expected[held] == 0).any() else float(np.sum(shares[held] * np.log(shares[held] / expected[held])))
    )


@pytest.mark.parametrize("seed", range(3))
def test_entropy_is_the_divergence_of_the_definition(seed):
    values = np.abs(np.random.default_rng(seed).standard_t(4, 5000))
    counts, _ = np.histogram(values, bins=500)
    counts = counts.astype(np.float64)
    own = counts.copy()
    own[0] = own[1]
    every = [divergence(own, stop, 128) for stop in range(128, 501)]
    assert entropy_ends(Density(counts, 0)) == (0.0, 128.0 + np.argmin(every))


def test_a_two_sided_percentile_cuts_as_much_off_at_either_end():
    values = np.arange(-2000, 8001, dtype=np.float32)
    made = histogram(values)
    found = made.range("percentile", symmetric=False, percent=99.0)
    assert found.min == pytest.approx(-1950, abs=2 * made.width)
    assert found.max == pytest.approx(7950, abs=2 * made.width)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_weight_counts_a_channel_so_many_times(rows, seed):
    generator = np.random.default_rng(seed)
    weights = generator.integers(1, 5, 7)
    batches = [
        (generator.normal(size=(count, 7)) * 10.0 ** generator.integers(-3, 3)).astype(np.float32) for count in rows
    ]
    weighted, backwards, repeated = Histogram(weights), Histogram(weights), Histogram()
    for batch in batches:
        weighted.update(batch)
        repeated.update(batch.repeat(weights, axis=1))
    for batch in batches[::-1]:
        backwards.update(batch)
    assert (weighted.counts == repeated.counts).all()
    assert (weighted.counts == backwards.counts).all()


def test_weights_hold_over_more_values_than_are_taken_at_a_time():
    values = np.tile(np.float32([0.25, -0.75, 0.5]), (100_000, 1))
    made = Histogram(np.array([1, 2, 65536]))
    made.update(values)
    held = {index: count for index, count in enumerate(made.counts) if count}
    assert list(held.values()) == [200_000, 100_000, 6_553_600_000]


def test_an_outlier_that_heavy_weights_read_is_kept():
    """Rounding the quiet channels costs their product little; cutting the loud one off would cost it much."""
    values = np.random.default_rng(1).normal(size=(4000, 64)).astype(np.float32)
    values[:, 5] *= 12
    bounds = []
    for weight in (1, 1000):
        weights = np.ones(64, np.int64)
        weights[5] = weight
        made = Histogram(weights)
        made.update(values)
        bounds.append(made.range("mse", symmetric=True).max / made.absmax)
    assert bounds[0] < 0.85 < bounds[1]
