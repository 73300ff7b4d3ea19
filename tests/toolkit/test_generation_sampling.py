"""Choosing tokens: against brute force, and against the formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import StageError, UsageError
from toolkit.generation.sampling import Sampler, Sampling, check_finite, nucleus, penalised


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def brute_force(scores, top_k, top_p):
    """Token to probability, one token at a time in falling order."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[:top_k]
    shares = softmax(np.array([scores[token] for token in order], np.float64))
    kept, mass = {}, 0.0
    for token, share in zip(order, shares, strict=True):
        if mass >= top_p < 1:
            break
        kept[token] = share
        mass += share
    return {token: share / sum(kept.values()) for token, share in kept.items()}


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([1, 2, 7, 129, 300, 2000]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 8.0]),
    top_k=st.none() | st.integers(1, 400),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    ties=st.booleans(),
)
def test_the_nucleus_is_what_brute_force_finds(seed, vocabulary, spread, top_k, top_p, ties):
    scores = spread * np.random.default_rng(seed).standard_normal((3, vocabulary))
    scores = np.round(scores).astype(np.float64) if ties else scores
    tokens, shares = nucleus(scores, top_k, top_p)
    for row in range(3):
        found = {int(token): share for token, share in zip(tokens[row], shares[row], strict=True) if share > 0}
        expected = brute_force(scores[row], top_k, top_p)
        # Where the mass meets top-p to the last bit, one token more or less is the same nucleus.
        assert len(set(found) ^ set(expected)) <= 1
        if set(found) == set(expected):
            np.testing.assert_allclose([found[token] for token in expected], list(expected.values()), rtol=1e-6)


def test_one_wide_row_widens_the_look_for_all():
    scores = np.zeros((2, 5000))
    scores[0, 17] = 50
    tokens, shares = nucleus(scores, None, 0.5)
    assert tokens[0, np.argmax(shares[0])] == 17
    assert [int((row > 0).sum()) for row in shares] == [1, 2500]


def test_top_k_keeps_exactly_k_where_all_are_equal():
    tokens, shares = nucleus(np.zeros((1, 10)), 3, 1.0)
    assert tokens.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(shares, 1 / 3)


def draws(sampling, logits, steps, rows=1):
    sampler = Sampler(sampling, [np.zeros(0, np.int64)] * rows, logits.shape[1])
    return np.array([sampler.choose(logits, range(rows)) for _ in range(steps)])


def test_draws_follow_the_probabilities():
    logits = np.array([[2.0, 1.0, 0.0, -1.0]], np.float32)
    found = draws(Sampling(temperature=0.7, seed=3), logits, 20_000)[:, 0]
    np.testing.assert_allclose(np.bincount(found, minlength=4) / 20_000, softmax(logits[0] / 0.7), atol=0.012)


def test_draws_stay_in_the_nucleus():
    logits = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32)
    found = draws(Sampling(temperature=2.0, top_k=9, top_p=0.8), logits, 300, rows=2)
    for row in range(2):
        allowed = brute_force(logits[row] / 2.0, 9, 0.8)
        assert set(found[:, row]) <= set(allowed)
        assert len(set(found[:, row])) > 1


def test_a_seed_gives_the_same_tokens_and_another_gives_others():
    logits = np.random.default_rng(0).standard_normal((2, 50)).astype(np.float32)
    first, again, other = (draws(Sampling(1.0, seed=seed), logits, 40, rows=2) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # Rows of equal logits draw on their own, and a row draws the same with and without another beside it.
    same = draws(Sampling(1.0, seed=5), np.repeat(logits[:1], 2, axis=0), 40, rows=2)
    assert (same[:, 0] != same[:, 1]).any()
    np.testing.assert_array_equal(draws(Sampling(1.0, seed=5), logits[:1], 40)[:, 0], first[:, 0])


def test_greedy_takes_the_likeliest_and_of_equals_the_first():
    assert draws(Sampling(), np.array([[0.0, 3.0, 3.0]], np.float32), 1).tolist() == [[1]]


def test_the_penalty_divides_positive_logits_and_multiplies_others():
    logits = np.array([[2.0, -2.0, 0.0, 4.0, -4.0]], np.float32)
    seen = np.array([[True, True, True, False, False]])
    assert penalised(logits, seen, 4.0).tolist() == [[0.5, -8.0, 0.0, 4.0, -4.0]]


def test_the_penalty_counts_the_prompt_and_what_was_chosen():
    sampler = Sampler(Sampling(repetition_penalty=10.0), [np.array([0])], 3)
    logits = np.array([[5.0, 4.0, 3.0]], np.float32)
    assert [int(sampler.choose(logits, [0])[0]) for _ in range(3)] == [1, 2, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_name_row_and_position(bad):
    logits = np.zeros((3, 7), np.float32)
    check_finite(logits, [0, 2, 5], [4, 5, 6])
    logits[1, 3] = bad
    with pytest.raises(StageError, match="1 of 7 logits are NaN or Inf in row 2 at position 5"):
        check_finite(logits, [0, 2, 5], [4, 5, 6])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_k": 0}, "top-k 0"),
        ({"top_p": 0.0}, "top-p 0"),
        ({"top_p": 1.5}, "top-p 1.5"),
        ({"repetition_penalty": 0.0}, "repetition penalty 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_a_setting_outside_its_range_is_refused(values, words):
    with pytest.raises(UsageError, match=f"{words} is outside its range") as caught:
        Sampling(**values)
    assert "Allowed" in caught.value.hint
