"""The arithmetic of drift, against its definitions and its own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toolkit.drift import metrics
from toolkit.errors import UsageError

VALUES = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=9)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    arrays = hnp.arrays(np.float32, shape, elements=VALUES)
    return draw(arrays), draw(arrays)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(pairs())
def test_every_metric_is_its_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    r, c = (array.astype(np.float64).ravel() for array in pair)
    assume(np.any(r) and np.any(c) and np.any(r != c))
    noise, signal = np.sum((r - c) ** 2), np.sum(r**2)
    assert metrics.sqnr_db(*pair) == pytest.approx(10 * np.log10(signal / noise), rel=1e-9, abs=1e-9)
    assert metrics.cosine(*pair) == pytest.approx(
        np.clip((r @ c) / (np.linalg.norm(r) * np.linalg.norm(c)), -1, 1), abs=1e-12
    )
    assert metrics.relative_l2(*pair) == pytest.approx(math.sqrt(noise / signal), rel=1e-9)
    assert metrics.max_abs(*pair) == np.max(np.abs(r - c))


@given(pairs())
def test_laws(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, candidate = pair
    assert -1 <= metrics.cosine(*pair) <= 1
    assert metrics.relative_l2(*pair) >= 0
    assert metrics.max_abs(*pair) == metrics.max_abs(candidate, reference)
    assert metrics.cosine(*pair) == pytest.approx(metrics.cosine(candidate, reference), abs=1e-12)
    ratio = metrics.relative_l2(*pair)
    if 0 < ratio < math.inf:
        assert metrics.sqnr_db(*pair) == pytest.approx(-20 * math.log10(ratio), abs=1e-6)


@given(pairs(), st.integers(-8, 8))
def test_scaling_both_by_a_power_of_two_changes_only_max_abs(
    pair: tuple[np.ndarray, np.ndarray], exponent: int
) -> None:
    scaled = tuple(array.astype(np.float64) * 2.0**exponent for array in pair)
    assert metrics.sqnr_db(*scaled) == pytest.approx(metrics.sqnr_db(*pair), abs=1e-9)
    assert metrics.cosine(*scaled) == pytest.approx(metrics.cosine(*pair), abs=1e-12)
    assert metrics.max_abs(*scaled) == metrics.max_abs(*pair) * 2.0**exponent


@given(hnp.arrays(np.float32, SHAPES, elements=VALUES))
def test_equal_arrays_are_exact_even_when_all_zero(array: np.ndarray) -> None:
    for same in (array, np.zeros_like(array)):
        assert metrics.sqnr_db(same, same.copy()) == math.inf
        assert metrics.cosine(same, same.copy()) == 1
        assert metrics.relative_l2(same, same.copy()) == 0
        assert metrics.max_abs(same, same.copy()) == 0


def test_empty_arrays_are_exact() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert (metrics.sqnr_db(empty, empty), metrics.max_abs(empty, empty)) == (math.inf, 0)


def test_a_zero_reference_that_was_not_met_is_the_worst_value() -> None:
    zero, some = np.zeros(3, np.float32), np.array([0, 1e-3, 0], np.float32)
    assert metrics.sqnr_db(zero, some) == -math.inf
    assert metrics.relative_l2(zero, some) == math.inf
    assert metrics.cosine(zero, some) == 0
    assert metrics.cosine(some, zero) == 0
    assert metrics.sqnr_db(some, zero) == 0


def test_known_values() -> None:
    reference, candidate = np.array([3.0, 4.0]), np.array([3.0, 4.5])
    assert metrics.sqnr_db(reference, candidate) == pytest.approx(20)
    assert metrics.relative_l2(reference, candidate) == pytest.approx(0.1)
    assert metrics.max_abs(reference, candidate) == 0.5
    assert metrics.cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))


def test_the_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate = random(0, 37, 41), random(1, 37, 41)
    whole = metrics.moments(reference, candidate)
    monkeypatch.setattr(metrics, "_CHUNK", 16)
    parts = metrics.moments(reference, candidate)
    assert parts.peak == whole.peak
    assert (parts.signal, parts.power, parts.product, parts.noise) == pytest.approx(
        (whole.signal, whole.power, whole.product, whole.noise), rel=1e-12
    )


def test_strides_do_not_show() -> None:
    reference, candidate = random(0, 30, 40), random(1, 40, 30)
    assert metrics.moments(reference.T, candidate) == metrics.moments(np.ascontiguousarray(reference.T), candidate)


def test_sums_run_in_float64() -> None:
    reference = np.full(1 << 20, 1e4, np.float16)
    candidate = reference.copy()
    candidate[0] += np.float16(8)
    assert metrics.sqnr_db(reference, candidate) == pytest.approx(10 * math.log10((1 << 20) * 1e8 / 64), abs=1e-9)


def test_integers_and_booleans_compare() -> None:
    assert metrics.max_abs(np.array([2**40]), np.array([2**40 + 3])) == 3
    assert metrics.max_abs(np.array([True, False]), np.array([True, True])) == 1


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=VALUES),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.data(),
)
def test_one_bad_value_anywhere_is_found(array: np.ndarray, bad: float, data: st.DataObject) -> None:
    broken = array.copy()
    broken.flat[data.draw(st.integers(0, array.size - 1))] = bad
    assert f"has 1 of {array.size} values that are NaN" in metrics.failure(array, broken)
    assert f"has 1 of {array.size} values of the reference" in metrics.failure(broken, array)
    with pytest.raises(UsageError, match="NaN"):
        metrics.sqnr_db(array, broken)


def test_what_cannot_be_compared_is_said() -> None:
    array = random(0, 2, 3)
    assert metrics.failure(array, array) == ""
    assert metrics.failure(array, None) == "is missing"
    assert metrics.failure(None, array) == "is missing from the reference"
    assert metrics.failure(array, array[:, :2]) == "has shape [2, 2], the reference has [2, 3]"
    assert metrics.failure(array, array[None]) == "has shape [1, 2, 3], the reference has [2, 3]"
    assert "beyond 1e100" in metrics.failure(np.array([1e200]), np.array([1.0]))
    with pytest.raises(UsageError, match="shape"):
        metrics.cosine(array, array[0])


def test_top1_agreement_counts_rows() -> None:
    reference = np.array([[1, 2, 3], [3, 2, 1], [0, 5, 0], [1, 1, 0]], np.float32)
    candidate = np.array([[0, 0, 9], [0, 1, 0], [0, 5, 1], [2, 2, 0]], np.float32)
    assert metrics.top1_agreement(reference, candidate) == 0.75
    assert metrics.top1_agreement(reference[:, None], candidate[:, None]) == 0.75
    with pytest.raises(UsageError, match="no rows"):
        metrics.top1_agreement(reference[:0], candidate[:0])
    with pytest.raises(UsageError, match="one shape"):
        metrics.top1_agreement(reference, candidate[:2])


def test_accuracy_is_in_per_cent() -> None:
    scores = np.eye(4, dtype=np.float32)
    assert metrics.accuracy(scores, np.array([0, 1, 2, 0])) == 75
    with pytest.raises(UsageError, match="labels"):
        metrics.accuracy(scores, np.array([0, 1]))
    with pytest.raises(UsageError, match="no rows"):
        metrics.accuracy(scores[:0], np.array([], np.int64))


def brute_overlap(reference: np.ndarray, candidate: np.ndarray, k: int) -> float:
    def nearest(rows: np.ndarray, index: int) -> set[int]:
        unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        order = sorted((j for j in range(len(rows)) if j != index), key=lambda j: -float(unit[index] @ unit[j]))
        return set(order[:k])

    rows = range(len(reference))
    return sum(len(nearest(reference, i) & nearest(candidate, i)) for i in rows) / (len(reference) * k)


@given(st.integers(0, 2**32 - 1), st.integers(6, 24), st.integers(1, 5))
def test_overlap_is_its_definition(seed: int, rows: int, k: int) -> None:
    reference = random(seed, rows, 8)
    candidate = reference + 0.5 * random(seed + 1, rows, 8)
    overlap = metrics.overlap_at_k(reference, candidate, k)
    assert overlap == pytest.approx(brute_overlap(reference, candidate, k))
    assert overlap == metrics.overlap_at_k(candidate, reference, k)
    assert metrics.overlap_at_k(reference, reference * 4, k) == 1


def test_overlap_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = random(3, 50, 8)
    candidate = reference + 0.3 * random(4, 50, 8)
    whole = metrics.overlap_at_k(reference, candidate)
    monkeypatch.setattr(metrics, "_ROWS", 7)
    assert metrics.overlap_at_k(reference, candidate) == whole == pytest.approx(brute_overlap(reference, candidate, 10))


def test_a_row_is_not_its_own_neighbour() -> None:
    reference = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    swapped = reference[[0, 2, 1, 3]]
    assert metrics.overlap_at_k(reference, swapped, 1) == 0


def test_overlap_with_few_rows() -> None:
    rows = random(0, 4, 8)
    assert metrics.overlap_at_k(rows, random(1, 4, 5), 10) == 1
    with pytest.raises(UsageError, match="no rows"):
        metrics.overlap_at_k(rows[:1], rows[:1])
    with pytest.raises(UsageError, match="rows, width"):
        metrics.overlap_at_k(rows, rows[:2])
