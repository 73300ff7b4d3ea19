"""Measuring a stage, judging it, and what the report says and keeps."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from toolkit.drift.gates import check, describe, judge, parse_gate, raise_if_failed
from toolkit.drift.measure import measure, observe, task_output
from toolkit.drift.report import (
    DriftReport,
    OutputDrift,
    StageDrift,
    TaskDrift,
    read_report,
    write_report,
)
from toolkit.drift.table import render, render_text, task_words
from toolkit.errors import DriftError, UsageError
from toolkit.types import Dim, Evaluation, Gate, ModelSpec, TensorSpec


def spec(*outputs: TensorSpec) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        family="test",
        kind="module",
        task="raw",
        source="test:tiny",
        architecture="Tiny",
        inputs=(TensorSpec("x", "float32", ("batch", 4)),),
        outputs=outputs or (TensorSpec("y", "float32", ("batch", 3)),),
        dims={"batch": Dim(1, 2, 8)},
    )


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"y": np.array([values], np.float32)}


def output(name: str = "y", sqnr: float = 40.0, **changes: float) -> OutputDrift:
    metrics = {"sqnr_db": sqnr, "cosine": 0.999, "relative_l2": 0.01, "max_abs": 0.1} | changes
    return OutputDrift(name=name, **metrics)


def stage(name: str = "quantize", *outputs: OutputDrift, task: TaskDrift | None = None) -> StageDrift:
    return StageDrift(stage=name, ran_on="onnxruntime CPU", outputs=outputs or (output(),), task=task)


ACCURACY = TaskDrift(
    metric="accuracy",
    output="y",
    count=360,
    reference_accuracy=98.5,
    candidate_accuracy=97.0,
    accuracy_drop=1.5,
    top1_agreement=0.98,
)


class Doubling:
    ran_on = "numpy"

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        pass


def test_observe_runs_every_batch_in_order() -> None:
    answers = observe(Doubling(), [{"x": np.array([1.0])}, {"x": np.array([2.0, 3.0])}])
    assert [answer["y"].tolist() for answer in answers] == [[2.0], [4.0, 6.0]]


def test_the_worst_batch_counts() -> None:
    reference = [rows(3, 4, 0), rows(30, 40, 0)]
    measured = measure("lower", "numpy", reference, [rows(3, 4.5, 0), rows(30, 41, 0)], spec())
    assert measured.outputs[0].sqnr_db == pytest.approx(20)
    assert measured.outputs[0].relative_l2 == pytest.approx(0.1)
    assert measured.outputs[0].max_abs == 1
    assert measured.outputs[0].cosine == pytest.approx(27 / (5 * math.sqrt(29.25)))
    assert measured.passed


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({}, "output 'y' is missing (batch 1)"),
        (rows(1, 2), "has shape [1, 2], the reference has [1, 3] (batch 1)"),
        (rows(1, 2, math.nan), "output 'y' has 1 of 3 values that are NaN"),
        (rows(1, math.inf, 3), "output 'y' has 1 of 3 values that are NaN, Inf"),
    ],
)
def test_what_cannot_be_compared_fails_without_any_gate(candidate: dict[str, np.ndarray], reason: str) -> None:
    good = rows(1, 2, 3)
    measured = measure("build", "numpy", [good, good], [good, candidate], spec())
    assert not measured.passed
    assert reason in measured.failures[0]
    assert measured.outputs[0].sqnr_db is None
    with pytest.raises(DriftError, match="'build' moved") as caught:
        raise_if_failed(DriftReport.of("torch", [measured]))
    assert "no gate lets this pass" in caught.value.hint


def test_a_nan_in_the_reference_fails_too() -> None:
    bad = rows(1, math.nan, 3)
    measured = measure("export", "numpy", [bad], [bad], spec())
    assert "of the reference" in measured.failures[0]


def test_every_output_of_the_spec_is_looked_at() -> None:
    both = spec(TensorSpec("y", "float32", ("batch", 3)), TensorSpec("z", "float32", ("batch", 3)))
    measured = measure("export", "numpy", [rows(1, 2, 3) | {"z": np.ones(2)}], [rows(1, 2, 3)], both)
    assert measured.failures == ("output 'z' is missing (batch 0)",)
    assert measured.outputs[0].sqnr_db == math.inf


def test_nothing_to_compare_on_is_an_error_and_no_pass() -> None:
    with pytest.raises(UsageError, match="at least one"):
        measure("export", "numpy", [], [], spec())
    with pytest.raises(UsageError, match="the reference has 2, the candidate 1"):
        measure("export", "numpy", [rows(1)] * 2, [rows(1)], spec())


def evaluated(candidate: list[dict[str, np.ndarray]], evaluation: Evaluation, gate: Gate) -> StageDrift:
    one_hot = [{"y": np.eye(4, 3, dtype=np.float32)}, {"y": np.eye(2, 3, dtype=np.float32)}]
    return measure(
        "quantize", "numpy", [rows(1, 2, 3)], [rows(1, 2, 3)], spec(), gate=gate,
        evaluation=evaluation, evaluation_reference=one_hot, evaluation_candidate=candidate,
    )  # fmt: skip


def test_accuracy_over_all_batches() -> None:
    labels = np.array([0, 1, 2, 1, 0, 1])
    evaluation = Evaluation("accuracy", ({}, {}), labels)
    changed = [{"y": np.eye(4, 3, dtype=np.float32)}, {"y": np.eye(2, 3, 1, dtype=np.float32)}]
    measured = evaluated(changed, evaluation, Gate(max_accuracy_drop=20, min_top1_agreement=0.5))
    task = measured.task
    assert task is not None
    assert task.count == 6
    assert task.reference_accuracy == pytest.approx(100 * 5 / 6)
    assert task.candidate_accuracy == pytest.approx(100 * 3 / 6)
    assert task.accuracy_drop == pytest.approx(100 / 3)
    assert task.top1_agreement == pytest.approx(4 / 6)
    assert measured.failures == ("accuracy of 'y': accuracy drop 33.33 points is above the gate's 20 points",)


def test_a_bad_value_in_the_evaluation_fails() -> None:
    evaluation = Evaluation("accuracy", ({}, {}), np.array([0, 1, 2, 1, 0, 1]))
    changed = [{"y": np.eye(4, 3, dtype=np.float32)}, {"y": np.full((2, 3), np.nan, np.float32)}]
    measured = evaluated(changed, evaluation, Gate())
    assert "accuracy of 'y' has 6 of 6 values that are NaN" in measured.failures[0]


def test_accuracy_without_labels_is_agreement_with_the_reference() -> None:
    changed = [{"y": np.eye(4, 3, dtype=np.float32)}, {"y": np.zeros((2, 3), np.float32)}]
    changed[1]["y"][:, 2] = 1
    measured = evaluated(changed, Evaluation("accuracy", ({}, {})), Gate(max_accuracy_drop=0.0, min_top1_agreement=0.9))
    assert measured.task is not None
    assert measured.task.reference_accuracy is measured.task.accuracy_drop is None
    assert measured.task.top1_agreement == pytest.approx(4 / 6)
    assert "top-1 agreement 0.6667 is below" in measured.failures[0]
    assert task_words(measured.task) == "top-1 agreement 0.6667"


def test_retrieval_overlap_over_all_batches() -> None:
    generator = np.random.default_rng(0)
    points = [{"y": generator.standard_normal((16, 3)).astype(np.float32)} for _ in range(2)]
    other = [{"y": generator.standard_normal((16, 3)).astype(np.float32)} for _ in range(2)]
    evaluation = Evaluation("retrieval", ({}, {}))
    gate = Gate(min_overlap_at_10=0.9)

    def overlap(candidate: list[dict[str, np.ndarray]]) -> StageDrift:
        return measure(
            "lower", "numpy", [rows(1, 2, 3)], [rows(1, 2, 3)], spec(), gate=gate,
            evaluation=evaluation, evaluation_reference=points, evaluation_candidate=candidate,
        )  # fmt: skip

    same, moved = overlap(points), overlap(other)
    assert same.task is not None
    assert same.task.overlap_at_10 == 1
    assert same.task.count == 32
    assert same.passed
    assert not moved.passed
    assert "overlap@10" in moved.failures[0]


def test_the_task_reads_the_first_flat_output() -> None:
    hidden, flat = TensorSpec("hidden", "float32", ("b", "s", 8)), TensorSpec("embedding", "float32", ("b", 8))
    assert task_output(spec(hidden, flat)) == "embedding"
    assert task_output(spec(hidden)) == "hidden"


@pytest.mark.parametrize(
    ("gate", "sentence"),
    [
        (Gate(min_sqnr_db=41), "output 'y': SQNR 40 dB is below the gate's 41 dB"),
        (Gate(min_cosine=0.9999), "output 'y': cosine 0.999 is below the gate's 0.9999"),
        (Gate(max_relative_l2=0.001), "output 'y': relative L2 0.01 is above the gate's 0.001"),
        (Gate(max_abs=0.05), "output 'y': max abs 0.1 is above the gate's 0.05"),
        (Gate(max_accuracy_drop=1), "accuracy of 'y': accuracy drop 1.5 points is above the gate's 1 points"),
        (Gate(min_top1_agreement=0.99), "accuracy of 'y': top-1 agreement 0.98 is below the gate's 0.99"),
        (Gate(min_cosine=0.99900001), "output 'y': cosine 0.999 is below the gate's 0.99900001"),
    ],
)
def test_each_broken_bound_is_a_sentence(gate: Gate, sentence: str) -> None:
    assert check(stage(task=ACCURACY), gate) == [sentence]


def test_a_bound_is_kept_at_its_very_value() -> None:
    exact = Gate(
        min_sqnr_db=40, min_cosine=0.999, max_relative_l2=0.01, max_abs=0.1, max_accuracy_drop=1.5,
        min_top1_agreement=0.98, min_overlap_at_10=0.5,
    )  # fmt: skip
    assert check(stage(task=ACCURACY), exact) == []
    assert check(stage(), Gate()) == []


@given(st.sampled_from([field.name for field in fields(Gate)]), st.floats(0, 1), st.floats(0, 1))
def test_a_tighter_bound_never_lets_more_pass(name: str, one: float, two: float) -> None:
    tight, loose = (max(one, two), min(one, two)) if name.startswith("min") else (min(one, two), max(one, two))
    task = TaskDrift(metric="accuracy", output="y", count=1, accuracy_drop=0.5, top1_agreement=0.5, overlap_at_10=0.5)
    measured = stage("x", output(sqnr=0.5, cosine=0.5, relative_l2=0.5, max_abs=0.5), task=task)
    assert len(check(measured, Gate(**{name: loose}))) <= len(check(measured, Gate(**{name: tight})))


def test_parse_gate_changes_what_it_names() -> None:
    base = Gate(min_sqnr_db=20, min_cosine=0.9, max_abs=1)
    parsed = parse_gate("sqnr=30, cosine=off,overlap=0.95", base)
    assert parsed == Gate(min_sqnr_db=30, max_abs=1, min_overlap_at_10=0.95)
    assert parse_gate(describe(parsed), Gate()) == parsed
    task = "accuracy_drop=4,top1=0.6,perplexity_ratio=1.05,kl=0.05,overlap=0.7"
    every = f"sqnr=1,cosine=0.5,relative_l2=2,max_abs=3,{task}"
    assert None not in asdict(parse_gate(every, Gate())).values()
    assert describe(parse_gate(every, Gate())) == every


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("snqr=30", "'snqr=30'", "Did you mean sqnr"),
        ("", "''", "cosine"),
        ("sqnr", "'sqnr'", "--drift-gate sqnr=30"),
        ("sqnr=30,", "''", "Allowed: sqnr"),
        ("sqnr=high", "'high' is no value", "a finite number"),
        ("sqnr=nan", "'nan' is no value", "off"),
        ("sqnr=inf", "'inf' is no value", "off"),
        ("cosine=99", "'99' is no value", "from -1 to 1"),
        ("top1=99", "'99' is no value", "from 0 to 1"),
        ("kl=-1", "'-1' is no value", "from 0"),
        ("perplexity=1", "'perplexity=1'", "Did you mean perplexity_ratio"),
        ("kl=1,k-l=1", "'k-l=1'", "Did you mean kl"),
        ("max-abs=1,max_abs=2", "given twice", "once"),
        ("max_abs=-1", "'-1' is no value", "from 0"),
        ("sqnr=30,sqnr=20", "given twice", "once"),
    ],
)
def test_parse_gate_refuses(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_gate(text, Gate())
    assert hint in caught.value.hint


def report(*levels: float, gate: Gate | None = None) -> DriftReport:
    made = [judge(stage(f"s{index}", output(sqnr=level)), gate or Gate()) for index, level in enumerate(levels)]
    return DriftReport.of("torch 2.13 cpu", made)


def test_the_report_names_the_stage_that_moved() -> None:
    moved = report(120, 35, 34.5, gate=Gate(min_sqnr_db=40))
    assert moved.moved == "s1"
    assert not moved.passed
    assert moved.added_loss_db() == (None, 85, 0.5)
    with pytest.raises(DriftError, match=r"stage 's1' moved.*torch 2.13 cpu.*SQNR 35 dB is below.*40 dB") as caught:
        raise_if_failed(moved)
    assert "now sqnr=40" in caught.value.hint
    assert report(120, 60, gate=Gate(min_sqnr_db=40)).moved is None
    raise_if_failed(report(120, 60))


def test_the_loss_of_exact_stages_is_a_number() -> None:
    assert report(math.inf, math.inf, 40).added_loss_db() == (None, 0, math.inf)


def test_the_loss_of_an_unmeasured_stage_is_unknown() -> None:
    broken = judge(stage("s1", OutputDrift(name="y", failure="is missing")), Gate())
    both = DriftReport.of("torch", [stage("s0"), broken, stage("s2")])
    assert both.added_loss_db() == (None, None, None)


def test_worst_takes_the_worst_of_each_metric() -> None:
    worst = stage("x", output("a", 10, max_abs=0.1), output("b", 20, max_abs=5, cosine=0.5), task=ACCURACY).worst()
    assert (worst.sqnr_db, worst.cosine, worst.max_abs, worst.relative_l2) == (10, 0.5, 5, 0.01)
    assert (worst.accuracy_drop, worst.top1_agreement, worst.overlap_at_10) == (1.5, 0.98, None)


metric = st.floats(allow_nan=False)


@given(
    st.lists(st.tuples(metric, metric, metric, metric), min_size=1, max_size=3),
    st.floats(allow_nan=False, allow_infinity=False),
    metric,
)
def test_json_round_trip_is_exact(values: list[tuple[float, ...]], bound: float, drop: float) -> None:
    outputs = tuple(
        OutputDrift(name=str(i), sqnr_db=v[0], cosine=v[1], relative_l2=v[2], max_abs=v[3])
        for i, v in enumerate(values)
    )
    task = TaskDrift(metric="accuracy", output="0", count=1, accuracy_drop=drop)
    made = DriftReport.of("torch", [judge(stage("x", *outputs, task=task), Gate(min_sqnr_db=bound, max_abs=bound))])
    text = made.model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert DriftReport.model_validate_json(text) == made


def test_files_round_trip(tmp_path: Path) -> None:
    made = report(math.inf, -math.inf, gate=Gate(min_sqnr_db=3))
    write_report(made, tmp_path / "drift.json")
    assert read_report(tmp_path / "drift.json") == made
    assert '"-inf"' in (tmp_path / "drift.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "has schema 2, this toolkit reads up to 1"),
        ({"schema_version": 0}, "not a valid drift report"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"passed": False}, "its stages say otherwise"),
        ({"stages": []}, "stages"),
    ],
)
def test_a_changed_report_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    data = json.loads(report(40).model_dump_json()) | change
    (tmp_path / "drift.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=message):
        read_report(tmp_path / "drift.json")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"schema_version": true}'])
def test_a_broken_report_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "drift.json").write_text(text)
    with pytest.raises(UsageError):
        read_report(tmp_path / "drift.json")


def test_impossible_reports_cannot_be_made() -> None:
    with pytest.raises(ValidationError, match="either all four metrics or a failure"):
        OutputDrift(name="y", sqnr_db=1)
    with pytest.raises(ValidationError, match="never NaN"):
        output(sqnr=math.nan)
    with pytest.raises(ValidationError, match="must be finite"):
        judge(stage(), Gate(min_sqnr_db=-math.inf))
    with pytest.raises(ValidationError, match="passed=True with 1 failures"):
        StageDrift(stage="x", ran_on="y", outputs=(output(),), failures=("bad",))
    with pytest.raises(ValidationError, match="frozen"):
        stage().stage = "y"


def test_a_gate_of_another_version_is_not_half_read() -> None:
    data = json.loads(stage().model_dump_json())
    data["gate"]["min_kl"] = 1
    with pytest.raises(ValidationError, match="min_kl"):
        StageDrift.model_validate(data)


def test_the_tables_show_every_number_and_failure() -> None:
    from rich.console import Console

    broken = judge(
        stage("build", output(sqnr=21.25), OutputDrift(name="z", failure="is missing"), task=ACCURACY),
        Gate(min_sqnr_db=30),
    )
    made = DriftReport.of("torch 2.13 cpu", [stage("export", output(sqnr=math.inf)), broken])
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(render(made))
    for text in (render_text(made), console.export_text()):
        for word in ("torch 2.13 cpu", "export", "inf", "21.2", "0.999000", "1.0e-02", "FAIL", "pass"):
            assert word in text
        assert "accuracy 98.50% to 97.00%, top-1 agreement 0.9800" in text
    assert "build: output 'y': SQNR 21.25 dB is below the gate's 30 dB" in render_text(made)
    assert "build: output 'z' is missing" in render_text(made)


def test_the_task_is_spared_where_golden_inputs_moved_by_rounding_alone() -> None:
    points = [{"y": np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)}]
    evaluation = Evaluation("retrieval", ({},))

    def overlap(moved: float, bound: float) -> StageDrift:
        candidate = [{"y": rows(1, 2, 3)["y"] * (1 + moved)}]
        return measure(
            "export", "numpy", [rows(1, 2, 3)], candidate, spec(), spare_above_db=bound,
            evaluation=evaluation, evaluation_reference=points, evaluation_candidate=iter(points),
        )  # fmt: skip

    spared, measured, unbounded = overlap(1e-6, 90), overlap(1e-3, 90), overlap(0, math.inf)
    assert spared.task is not None
    assert spared.task.skipped
    assert spared.task.overlap_at_10 is None
    assert "not measured" in task_words(spared.task)
    assert [drift.task and drift.task.overlap_at_10 for drift in (measured, unbounded)] == [1, 1]
