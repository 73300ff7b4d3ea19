"""Greedy agreement, driven through the Decoder interface."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.drift.greedy import compare_greedy, greedy_agreement, greedy_tokens
from toolkit.drift.report import DriftReport, GreedyDrift, OutputDrift, StageDrift, TaskDrift
from toolkit.drift.table import task_words
from toolkit.errors import DriftError, UsageError

VOCABULARY = 50


class Counting:
    """Its likeliest token is (sum of all tokens so far + `shift`) modulo the vocabulary, so every token matters."""

    ran_on = "numpy on the CPU"
    rows = 1

    def __init__(self, shift: int = 1, since: int = 0, limit: int = 100, broken: int | None = None) -> None:
        self.shift, self.since, self.limit, self.broken = shift, since, limit, broken
        self.seen: list[int] = []

    def start(self, rows: int) -> None:
        assert rows == 1
        self.seen = []

    def forward(self, tokens: np.ndarray, lengths: np.ndarray, *, every: bool = False) -> np.ndarray:
        assert tokens.shape == (1, lengths[0])
        assert tokens.dtype == lengths.dtype == np.int64
        self.seen += tokens[0].tolist()
        assert len(self.seen) <= self.limit
        logits = np.zeros((1, VOCABULARY), np.float32)
        shift = self.shift if len(self.seen) > self.since else 1
        logits[0, (sum(self.seen) + shift) % VOCABULARY] = 1
        if len(self.seen) == self.broken:
            logits[0, 3] = np.nan
        return logits

    def rewind(self, length: int) -> None:
        del self.seen[length:]

    def close(self) -> None:
        pass


PROMPTS = [np.array([1, 2, 3]), np.array([9]), np.array([4, 4, 4, 4, 4, 4])]


def test_each_is_fed_its_own_tokens() -> None:
    (row,) = greedy_tokens(Counting(), [np.array([3])], steps=4)
    assert row.tolist() == [4, 8, 16, 32]


def test_a_model_agrees_with_itself() -> None:
    same = greedy_agreement(Counting(), Counting(), PROMPTS, steps=8)
    assert same == GreedyDrift(steps=8, agreement=1, first_divergence=(None, None, None))


def test_the_first_divergence_is_found_in_every_prompt() -> None:
    found = greedy_agreement(Counting(), Counting(shift=2, since=6), PROMPTS, steps=8)
    assert found.first_divergence == (4, 6, 1)
    both = [greedy_tokens(decoder, PROMPTS, 8) for decoder in (Counting(), Counting(shift=2, since=6))]
    assert found.agreement == np.mean(both[0] == both[1])
    assert 0 < found.agreement < 1


def test_agreement_counts_all_positions_after_a_divergence_too() -> None:
    one, two = np.array([[1, 2, 3, 4], [5, 5, 5, 5]]), np.array([[1, 9, 3, 4], [5, 5, 5, 5]])
    assert compare_greedy(one, two) == GreedyDrift(steps=4, agreement=7 / 8, first_divergence=(1, None))


def test_the_cache_must_hold_all_that_is_fed() -> None:
    assert greedy_tokens(Counting(limit=10), [np.array([1, 2, 3])], steps=8).shape == (1, 8)
    with pytest.raises(UsageError, match=r"prompt 0 of 3 tokens and 9 steps need 11 positions.* holds 10"):
        greedy_tokens(Counting(limit=10), [np.array([1, 2, 3])], steps=9)


@pytest.mark.parametrize(
    ("prompts", "steps"), [([], 4), ([np.array([], np.int64)], 4), ([np.array([[1]])], 4), (PROMPTS, 0)]
)
def test_nothing_to_continue_is_an_error(prompts: list[np.ndarray], steps: int) -> None:
    with pytest.raises(UsageError):
        greedy_tokens(Counting(), prompts, steps)


def test_continuations_of_different_shapes_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"\[1, 4\] and \[1, 5\]"):
        compare_greedy(np.zeros((1, 4), np.int64), np.zeros((1, 5), np.int64))


def test_logits_that_are_nan_fail() -> None:
    with pytest.raises(DriftError, match="numpy on the CPU answered logits that are NaN or Inf at step 2"):
        greedy_agreement(Counting(), Counting(broken=5), PROMPTS[:1], steps=8)


def stage(task: TaskDrift | None) -> StageDrift:
    output = OutputDrift(name="logits", sqnr_db=40, cosine=1, relative_l2=0.01, max_abs=0.1)
    return StageDrift(stage="engine", ran_on="numpy", outputs=(output,), task=task)


def test_the_report_keeps_it_in_the_task_section() -> None:
    greedy = GreedyDrift(steps=64, agreement=0.75, first_divergence=(48, None))
    language = TaskDrift(
        metric="language", output="logits", count=9, reference_perplexity=12.05, candidate_perplexity=12.11,
        perplexity_ratio=1.005, kl=0.004, top1_agreement=0.98,
    )  # fmt: skip
    for task in (None, language):
        made = stage(task).with_greedy(greedy)
        assert made.task is not None
        assert made.task.greedy == greedy
        assert task_words(made.task).endswith(", greedy 75.0% of 64")
        report = DriftReport.of("torch", [made])
        assert DriftReport.model_validate_json(report.model_dump_json()) == report
    assert made.task.kl == 0.004
