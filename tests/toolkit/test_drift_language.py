"""Perplexity, KL and agreement of language models against brute force, whole and from a bundle's summary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from tiny_language import LAYERS, VOCABULARY, Bigram, decoder_spec, text

from toolkit.drift import language
from toolkit.drift.gates import check
from toolkit.drift.measure import answers, measure, observe, task_output
from toolkit.drift.report import DriftReport, OutputDrift, StageDrift, TaskDrift
from toolkit.drift.summary import TOP, summarize
from toolkit.drift.table import render_text, task_words
from toolkit.errors import UsageError
from toolkit.types import Evaluation, Gate, ModelSpec, Tensors

BATCHES = (text(1), text(2, rows=3, width=9), text(3, width=17))
EVALUATION = Evaluation("language", BATCHES)


def drift(
    reference: list[dict[str, np.ndarray]],
    candidate: list[dict[str, np.ndarray]],
    evaluation: Evaluation = EVALUATION,
    spec: ModelSpec | None = None,
    gate: Gate | None = None,
) -> StageDrift:
    golden = observe(Bigram(), BATCHES[:1])
    return measure(
        "engine", "numpy", golden, golden, spec or decoder_spec(), gate=gate,
        evaluation=evaluation, evaluation_reference=reference, evaluation_candidate=candidate,
    )  # fmt: skip


def task(stage: StageDrift) -> TaskDrift:
    assert stage.task is not None
    return stage.task


def summaries(outputs: list[dict[str, np.ndarray]], batches: tuple[Tensors, ...]) -> list[dict[str, np.ndarray]]:
    return [summarize(one["logits"], fed, "logits") for one, fed in zip(outputs, batches, strict=True)]


def brute_force(reference: list[Tensors], candidate: list[Tensors], batches: tuple[Tensors, ...]) -> dict[str, float]:
    nll: dict[str, list[float]] = {"reference": [], "candidate": []}
    kl, agreed = [], []
    for before, after, fed in zip(reference, candidate, batches, strict=True):
        for row, mask in enumerate(fed["attention_mask"]):
            real = np.flatnonzero(mask)
            left, right = (side["logits"][row].astype(np.float64) for side in (before, after))
            kl += list(rel_entr(softmax(left[real], 1), softmax(right[real], 1)).sum(1))
            agreed += list(left[real].argmax(1) == right[real].argmax(1))
            for here, there in pairwise(real):
                token = fed["input_ids"][row, there]
                nll["reference"].append(-log_softmax(left[here])[token])
                nll["candidate"].append(-log_softmax(right[here])[token])
    return {
        "reference_perplexity": math.exp(np.mean(nll["reference"])),
        "candidate_perplexity": math.exp(np.mean(nll["candidate"])),
        "kl": float(np.mean(kl)),
        "top1_agreement": float(np.mean(agreed)),
        "count": len(kl),
    }


@pytest.mark.parametrize("elements", [1, VOCABULARY * 5, 1 << 20])
def test_metrics_equal_brute_force_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(language, "_ELEMENTS", elements)
    reference, candidate = observe(Bigram(), BATCHES), observe(Bigram(noise=0.7), BATCHES)
    measured, expected = task(drift(reference, candidate)), brute_force(reference, candidate, BATCHES)
    assert measured.count == expected["count"] == 24 + 27 + 17
    for name, value in expected.items():
        assert getattr(measured, name) == pytest.approx(value, rel=1e-12), name
    ratio = expected["candidate_perplexity"] / expected["reference_perplexity"]
    assert measured.perplexity_ratio == pytest.approx(ratio, rel=1e-12)
    assert not measured.kl_is_lower_bound
    assert (measured.kl or 0) > 0.1
    assert 0.5 < (measured.top1_agreement or 0) < 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_positions_do_not_count(side: str) -> None:
    fed = text(4, rows=2, width=12)
    fed["attention_mask"][1, slice(8, None) if side == "right" else slice(0, 4)] = 0
    reference, candidate = observe(Bigram(), [fed]), observe(Bigram(noise=0.5), [fed])
    candidate[0]["logits"][1, ~fed["attention_mask"][1].astype(bool)] = 0
    measured = task(drift(reference, candidate, Evaluation("language", (fed,))))
    for name, value in brute_force(reference, candidate, (fed,)).items():
        assert getattr(measured, name) == pytest.approx(value, rel=1e-12), name
    assert measured.count == 20


def test_the_mask_may_cover_a_past() -> None:
    fed = text(4, width=12)
    longer = fed | {"attention_mask": np.ones((1, 40), np.int64)}
    outputs, others = observe(Bigram(), [fed]), observe(Bigram(0.5), [fed])
    plain = task(drift(outputs, others, Evaluation("language", (fed,))))
    assert task(drift(outputs, others, Evaluation("language", (longer,)))) == plain


def test_a_model_does_not_diverge_from_itself() -> None:
    outputs = observe(Bigram(), BATCHES)
    whole, short = task(drift(outputs, outputs)), task(drift(summaries(outputs, BATCHES), outputs))
    assert (whole.kl, whole.perplexity_ratio, whole.top1_agreement) == (0, 1, 1)
    assert (short.perplexity_ratio, short.top1_agreement) == (1, 1)
    assert 0 <= (short.kl or 0) < 1e-12
    assert short.kl_is_lower_bound


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 30), st.floats(0.1, 30))
@example(4294967294, 22.0, 0.125)
def test_the_summary_never_says_more_than_all_logits(seed: int, spread: float, other: float) -> None:
    pair = [np.random.default_rng([seed, side]).standard_normal((1, 6, 128)) for side in (0, 1)]
    fed = text(5, width=6, vocabulary=128)
    reference, candidate = [{"logits": pair[0] * spread}], [{"logits": pair[0] * spread + pair[1] * other}]
    spec, evaluation = decoder_spec(128), Evaluation("language", (fed,))
    whole = task(drift(reference, candidate, evaluation, spec))
    short = task(drift(summaries(reference, (fed,)), candidate, evaluation, spec))
    assert short.kl is not None
    assert whole.kl is not None
    assert 0 < short.kl <= whole.kl + 1e-6 * (whole.kl + math.sqrt(whole.kl))
    assert short.perplexity_ratio == pytest.approx(whole.perplexity_ratio, rel=1e-12)
    assert (short.top1_agreement, short.reference_perplexity) == (whole.top1_agreement, whole.reference_perplexity)


@pytest.mark.parametrize("vocabulary", [2, 50, TOP])
def test_the_summary_says_all_where_the_kept_tokens_are_all(vocabulary: int) -> None:
    fed = text(6, vocabulary=vocabulary)
    reference, candidate = (observe(Bigram(noise, vocabulary=vocabulary), [fed]) for noise in (0, 0.5))
    spec, evaluation = decoder_spec(vocabulary), Evaluation("language", (fed,))
    whole = task(drift(reference, candidate, evaluation, spec))
    short = task(drift(summaries(reference, (fed,)), candidate, evaluation, spec))
    assert short.kl == pytest.approx(whole.kl, rel=1e-6)


def test_the_summary_says_all_where_the_others_have_no_mass() -> None:
    fed, generator = text(7), np.random.default_rng(8)
    peaks = np.where(np.arange(VOCABULARY) % 5 == 0, 0.0, -800.0)
    reference = [{"logits": generator.standard_normal((1, 24, VOCABULARY)) * 3 + peaks}]
    candidate = [{"logits": reference[0]["logits"] + generator.standard_normal((1, 24, VOCABULARY))}]
    evaluation = Evaluation("language", (fed,))
    whole, short = (task(drift(side, candidate, evaluation)) for side in (reference, summaries(reference, (fed,))))
    assert short.kl == pytest.approx(whole.kl, rel=1e-6)


def test_a_tie_goes_to_the_lower_id_with_and_without_a_summary() -> None:
    fed = text(9)
    flat = [{"logits": np.zeros((1, 24, VOCABULARY), np.float32)}]
    evaluation = Evaluation("language", (fed,))
    for reference in (flat, summaries(flat, (fed,))):
        measured = task(drift(reference, flat, evaluation))
        assert measured.top1_agreement == 1
        assert measured.reference_perplexity == pytest.approx(VOCABULARY)


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {"logits": np.where(found["logits"] == found["logits"].max(), np.nan, found["logits"])}, "NaN"),
        (lambda found: {"logits": np.where(found["logits"] == found["logits"].max(), np.inf, found["logits"])}, "Inf"),
        (lambda found: {"logits": found["logits"][:, :, :-1]}, "has shape [3, 9, 299], the reference has [3, 9, 300]"),
        (lambda found: {"logits": found["logits"][:, -1:]}, "has shape [3, 1, 300]"),
        (lambda found: {}, "is missing"),
    ],
)
def test_logits_that_cannot_be_compared_fail_without_any_gate(short: bool, change, message: str) -> None:
    reference, candidate = observe(Bigram(), BATCHES), observe(Bigram(), BATCHES)
    candidate[1] = change(candidate[1])
    stage = drift(summaries(reference, BATCHES) if short else reference, candidate)
    assert not stage.passed
    assert message in stage.failures[0]
    assert "language of 'logits'" in stage.failures[0]
    assert "(batch 1)" in stage.failures[0]
    assert task(stage).kl is None
    assert task_words(stage.task) == "not comparable"


def test_a_nan_in_the_reference_fails_too() -> None:
    reference = observe(Bigram(), BATCHES)
    reference[0]["logits"][0, 3, 5] = np.nan
    assert "of the reference" in drift(reference, observe(Bigram(), BATCHES)).failures[0]


def test_what_cannot_be_measured_is_an_error() -> None:
    outputs = observe(Bigram(), BATCHES)
    with pytest.raises(UsageError, match="3 batches of text, the candidate 2"):
        drift(outputs, outputs[:2])
    with pytest.raises(UsageError, match="there are 3 batches and 2 answers"):
        drift(outputs[:2], outputs)
    with pytest.raises(UsageError, match="no 'logits'"):
        drift([{"y": outputs[0]["logits"]}] * 3, outputs)
    single = Evaluation("language", (text(1, width=1),))
    with pytest.raises(UsageError, match="no positions"):
        drift(*[observe(Bigram(), single.batches)] * 2, evaluation=single)
    with pytest.raises(UsageError, match=r"logits \[1, 1, 300\] do not fit"):
        drift([{"logits": outputs[0]["logits"][:, -1:]}] * 3, outputs)
    outside = Evaluation("language", ({"input_ids": np.array([[0, 300]])},))
    with pytest.raises(UsageError, match=r"token 300 .* vocabulary of 300"):
        drift([{"logits": np.zeros((1, 2, 300))}], [{"logits": np.zeros((1, 2, 300))}], outside)
    with pytest.raises(UsageError, match="input_ids"):
        drift(outputs[:1], outputs[:1], Evaluation("language", ({"x": np.zeros(3)},)))


def test_one_batch_at_a_time_is_asked_for() -> None:
    made: list[int] = []

    def candidate() -> Iterator[dict[str, np.ndarray]]:
        for index, output in enumerate(answers(Bigram(0.5), BATCHES, ["logits"])):
            assert list(output) == ["logits"]
            made.append(index)
            yield output

    reference, streamed = observe(Bigram(), BATCHES), candidate()
    next_reference = iter(reference)
    measured = language.language_drift(
        "logits", BATCHES, (language.Whole(batch["logits"]) for batch in next_reference), streamed
    )
    assert made == [0, 1, 2]
    assert measured == task(drift(reference, observe(Bigram(0.5), BATCHES)))


def test_a_spilled_reference_is_mapped_and_equal(tmp_path: Path) -> None:
    kept = observe(Bigram(), BATCHES, outputs=["logits"])
    spilled = observe(Bigram(), BATCHES, outputs=["logits"], spill=tmp_path / "reference")
    assert [list(batch) for batch in spilled] == [["logits"]] * 3
    for batch, plain in zip(spilled, kept, strict=True):
        assert isinstance(batch["logits"], np.memmap)
        assert not batch["logits"].flags.writeable
        np.testing.assert_array_equal(batch["logits"], plain["logits"])
    candidate = observe(Bigram(0.5), BATCHES)
    assert drift(spilled, candidate) == drift(kept, candidate)


def test_outputs_without_elements_spill_too(tmp_path: Path) -> None:
    class Empty(Bigram):
        def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
            return {"a/b": np.zeros((0, 3), np.float32)}

    assert observe(Empty(), BATCHES[:1], spill=tmp_path / "r")[0]["a/b"].shape == (0, 3)


def test_a_decoder_is_judged_by_its_logits() -> None:
    assert task_output(decoder_spec()) == "logits"


MEASURED = TaskDrift(
    metric="language", output="logits", count=99, reference_perplexity=12.05, candidate_perplexity=12.11,
    perplexity_ratio=12.11 / 12.05, kl=0.004, top1_agreement=0.98,
)  # fmt: skip


def stage_of(measured: TaskDrift) -> StageDrift:
    output = OutputDrift(name="logits", sqnr_db=40, cosine=1, relative_l2=0.01, max_abs=0.1)
    return StageDrift(stage="engine", ran_on="numpy", outputs=(output,), task=measured)


@pytest.mark.parametrize(
    ("kept", "broken", "sentence"),
    [
        (Gate(max_kl=0.004), Gate(max_kl=0.0039), "KL 0.004 nats is above the gate's 0.0039 nats"),
        (
            Gate(max_perplexity_ratio=12.11 / 12.05), Gate(max_perplexity_ratio=1.004),
            "perplexity ratio 1.005 is above the gate's 1.004",
        ),
        (
            Gate(min_top1_agreement=0.98), Gate(min_top1_agreement=0.981),
            "top-1 agreement 0.98 is below the gate's 0.981",
        ),
    ],
)  # fmt: skip
def test_gates_hold_to_their_very_value(kept: Gate, broken: Gate, sentence: str) -> None:
    assert check(stage_of(MEASURED), kept) == []
    assert check(stage_of(MEASURED), broken) == [f"language of 'logits': {sentence}"]


def test_gates_judge_what_was_measured() -> None:
    reference, candidate = observe(Bigram(), BATCHES), observe(Bigram(0.5), BATCHES)
    loose, tight = (drift(reference, candidate, gate=Gate(max_kl=bound)) for bound in (10, 1e-3))
    assert loose.passed
    assert not tight.passed
    assert tight.worst().kl == task(tight).kl


def test_the_words_and_the_table() -> None:
    assert task_words(MEASURED) == "perplexity 12.05 → 12.11, KL 0.004, top-1 98.0%"
    assert "KL ≥ 0.004" in task_words(MEASURED.model_copy(update={"kl_is_lower_bound": True}))
    golden = observe(Bigram(), BATCHES[:1])
    moved = [golden[0] | {"present.1.value": golden[0]["present.1.value"] + 1}]
    stage = measure("engine", "numpy", golden, moved, decoder_spec(), gate=Gate(min_sqnr_db=90))
    rows = render_text(DriftReport.of("torch", [stage])).splitlines()
    assert [row for row in rows if "present" in row] == [rows[-2], rows[-1]]
    assert "present.*" in rows[-2]
    assert "1.0e+00" in rows[-2]
    assert len(stage.failures) == 1
    assert stage.failures[0].startswith("output 'present.*': SQNR")
    assert [output.name for output in stage.outputs].count("present.1.value") == 1
    assert len(stage.outputs) == 1 + 2 * LAYERS


def test_a_broken_cache_output_is_named() -> None:
    golden = observe(Bigram(), BATCHES[:1])
    broken = [{name: array for name, array in golden[0].items() if not name.startswith("present.2")}]
    stage = measure("engine", "numpy", golden, broken, decoder_spec())
    assert stage.failures == ("output 'present.*' fails in 2 of 6: 'present.2.key' is missing (batch 0)",)


def test_padded_positions_of_cache_and_logits_do_not_count() -> None:
    fed = text(4, rows=2, width=12)
    fed["attention_mask"][1, 8:] = 0
    before = observe(Bigram(), [fed])
    after = [{name: array.copy() for name, array in before[0].items()}]
    after[0]["logits"][1, 8:] += 5
    after[0]["present.0.key"][1, :, 8:] += 5
    assert measure("e", "n", before, after, decoder_spec(), inputs=[fed], gate=Gate(max_abs=0)).passed
    after[0]["present.0.key"][1, :, 7] += 5
    assert not measure("e", "n", before, after, decoder_spec(), inputs=[fed], gate=Gate(max_abs=0)).passed


def test_logits_after_a_past_are_masked_by_the_last_columns() -> None:
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 1, 0]])
    fed = [{"input_ids": np.zeros((2, 2), np.int64), "attention_mask": mask}]
    before = {"logits": np.ones((2, 2, VOCABULARY)), "present.0.key": np.ones((2, 1, 6, 2))}
    spec = decoder_spec()
    spec = replace(spec, outputs=tuple(tensor for tensor in spec.outputs if tensor.name in before))

    def passes(row: int, position: int, name: str) -> bool:
        after = {key: value.copy() for key, value in before.items()}
        (after[name] if name == "logits" else after[name][:, 0])[row, position] = 9
        return measure("e", "n", [before], [after], spec, inputs=fed, gate=Gate(max_abs=0)).passed

    assert passes(1, 1, "logits")
    assert not passes(1, 0, "logits")
    assert passes(1, 3, "present.0.key")
    assert not passes(1, 4, "present.0.key")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: kept.pop("logits.ids"), "lacks ids"),
        (lambda kept: kept.update({"logits.ids": kept["logits.ids"][:, :, :-1]}), "does not fit together"),
        (lambda kept: kept.update({"logits.top1": kept["logits.top1"][:, :-1]}), "does not fit together"),
        (lambda kept: kept.update({"logits.vocabulary": np.array(9)}), "does not fit together"),
    ],
)
def test_a_summary_that_does_not_fit_is_refused(change, message: str) -> None:
    outputs = observe(Bigram(), BATCHES)
    kept = summaries(outputs, BATCHES)
    change(kept[0])
    with pytest.raises(UsageError, match=message):
        drift(kept, outputs)
