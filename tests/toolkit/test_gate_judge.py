"""What counts as worse than the baseline, and how it is told to machines."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from toolkit.gate.baseline import Baseline, changes, merged, read_baseline, write_baseline
from toolkit.gate.github import markdown, workflow_commands
from toolkit.gate.judge import compare, library_changes
from toolkit.gate.junit import junit_xml
from toolkit.gate.record import Artefact, Operators, Record, StageRecord
from toolkit.gate.result import CHECKS, Check, Outcome, Result, Source
from toolkit.gate.tolerance import parse_tolerances


def record(sqnr=44.0, *, task=None, engine="executed", size=1000, operators=None, **metrics):
    outputs = {"logits": {"sqnr_db": sqnr, "cosine": 0.9999, "relative_l2": 0.006, "max_abs": 0.02, **metrics}}
    made = Operators(
        nodes=100, linears=4, quantized={"MatMulNBits": 4}, attention={"com.microsoft::MultiHeadAttention": 2},
        fused={"com.microsoft::SkipLayerNormalization": 8}, engines={"sm89": {"fused_attentions": 2}},
    )  # fmt: skip
    return Record(
        model="m", target="ort-cpu-int8", stages={"engine": StageRecord(outputs=outputs, task=task or {})},
        artefact=Artefact(engine=engine, bytes=size, operators=made.model_copy(update=operators or {})),
        libraries={"torch": "2.12", "onnx": "1.22", "tokenizers": "1"},
    )  # fmt: skip


def found(now, before, **tolerances):
    return compare(now.stages, now.artefact, before, tolerances)


@pytest.mark.parametrize(
    ("now", "before", "check", "said"),
    [
        (record(43.49), record(), "drift", "SQNR 43.49 dB, was 44 dB (tolerance 0.5 dB)"),
        (record(93.9), record(101.0), "drift", "SQNR 93.9 dB, was 101 dB"),
        (record(120.0), record(126.5), "drift", "SQNR 120 dB, was 126.5 dB (tolerance 6 dB)"),
        (record(101.0), record(math.inf), "drift", "SQNR 101 dB, was inf dB"),
        (record(cosine=0.9997), record(), "drift", "cosine 0.9997, was 0.9999"),
        (record(relative_l2=0.0064), record(), "drift", "relative L2 0.0064, was 0.006 (tolerance 6%)"),
        (record(max_abs=0.028), record(), "drift", "max abs 0.028, was 0.02"),
        (record(task={"accuracy_drop": 0.56}), record(task={"accuracy_drop": 0.0}), "task", "drop 0.56 points"),
        (record(task={"kl": 0.0045}), record(task={"kl": 0.004}), "task", "KL 0.0045 nats, was 0.004 nats"),
        (record(), record(task={"overlap_at_10": 0.9}), "task", "overlap@10 is in the baseline only"),
        (record(size=5_000_000_123), record(size=4_000_000_123), "size", "size 5000000123 bytes, was 4000000123 bytes"),
        (record(operators={"nodes": 103}), record(), "operators", "nodes 103, was 100"),
        (record(operators={"attention": {}}), record(), "operators", "0 fused attention nodes, in the baseline 2"),
        (record(operators={"quantized": {"MatMulNBits": 3}}), record(), "operators", "3 quantized Linears"),
        (record(operators={"fused": {}}), record(), "operators", "0 fused com.microsoft::SkipLayerNormalization"),
        (record(operators={"engines": {"sm89": {"fused_attentions": 1}}}), record(), "operators", "of sm89"),
        (record(engine="graph-only"), record(engine="built"), "engine", "the engine is graph-only"),
    ],
)  # fmt: skip
def test_what_is_worse_is_said_once_and_its_opposite_is_better(now, before, check, said):
    worse = found(now, before)
    assert [(finding.check, finding.worse) for finding in worse] == [(check, True)]
    assert said in worse[0].sentence
    if "baseline only" not in said and "inf" not in said:
        assert [(finding.check, finding.worse) for finding in found(before, now)] == [(check, False)]


def test_other_evaluation_data_is_told_however_good_its_figures_are():
    before = record(task={"accuracy_drop": 0.5})
    easier = record(task={"accuracy_drop": 0.0})
    easier = easier.model_copy(update={"artefact": easier.artefact.model_copy(update={"evaluation": "0" * 64})})
    worse = [finding for finding in found(easier, before) if finding.worse]
    assert [(finding.check, "does not compare" in finding.sentence) for finding in worse] == [("task", True)]


@pytest.mark.parametrize("spared_now", [True, False])
def test_a_task_that_one_side_spared_for_rounding_alone_is_not_compared(spared_now):
    task, spared, near = {"top1_agreement": 1.0}, record(120.0), record(89.0)
    measured = record(120.0, task=task)
    assert not found(*((spared, measured) if spared_now else (measured, spared)))
    lost = found(near, record(89.0, task=task))
    assert [finding.check for finding in lost] == ["task"]


def test_equal_infinities_are_no_change():
    endless = record(task={"perplexity_ratio": math.inf})
    assert found(endless, endless) == []


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (record(43.5), record()),
        (record(120.1), record(126.0)),
        (record(math.inf), record(141.0)),
        (record(130.0, relative_l2=4e-7, max_abs=9e-6), record(131.0, relative_l2=2e-7, max_abs=2e-6)),
        (record(task={"kl": 1e-4}), record(task={"kl": 1e-6})),
        (record(task={"accuracy_drop": 0.28}), record(task={"accuracy_drop": 0.0})),
        (record(size=1020), record()),
    ],
)
def test_what_is_within_its_tolerance_is_not_said(now, before):
    assert found(now, before) == []


def test_tolerances_replace_the_defaults_and_off_compares_nothing():
    assert found(record(43.0), record(), **parse_tolerances("sqnr=1")) == []
    assert found(record(20.0), record(), **parse_tolerances("sqnr=off")) == []
    assert len(found(record(43.9), record(), **parse_tolerances("sqnr=0"))) == 1


def test_a_stage_that_is_gone_fails_unless_the_run_ended_early():
    before = record()
    now = before.model_copy(update={"stages": {"lower": before.stages["engine"]}})
    said = [finding.sentence for finding in found(now, before)]
    assert said == ["stage 'lower' is not in the baseline", "stage 'engine' of the baseline was not measured"]
    assert compare({}, None, before, {}) == []


def test_libraries_that_have_a_say_are_named():
    assert library_changes({"torch": "2.13", "tokenizers": "2"}, record().libraries) == (
        "onnx 1.22 → absent",
        "torch 2.12 → 2.13",
    )


def test_a_baseline_survives_its_file_in_the_order_of_names(tmp_path: Path):
    path = tmp_path / "b.json"
    exact = record(math.inf)
    baseline = merged(Baseline(), {"b": record(), "a": exact}, {"sqnr": 0.5, "size": None})
    write_baseline(baseline, path)
    assert read_baseline(path) == baseline
    assert list(read_baseline(path).subjects) == ["a", "b"]
    assert baseline.tolerances == {"size": None}
    later = merged(baseline, {"b": record(43.0)}, {})
    assert changes(baseline, later) == ["b: stages.engine.outputs.logits.sqnr_db 44.0 → 43.0"]
    assert later.subjects["a"] == exact


def result() -> Result:
    odd = "50% of <a|b>,\nline: two\x1b"
    checks = [Check(name, "passed") for name in CHECKS]
    checks[3] = Check("drift", "failed", (odd, "second"))
    checks[4] = Check("task", "skipped", ("no data",))
    checks[5] = Check("size", "error", ("could not",))
    source = Source(Path("r.yaml"), Path("r,1.yaml"), 7, "ort-cpu-int8")
    outcome = Outcome("m-ort-cpu-int8", source, tuple(checks), 6, {}, better=("smaller",), notes=("torch changed",))
    return Result((outcome,), ("other",))


def test_junit_has_the_elements_and_attributes_of_jenkins_schema():
    root = ElementTree.fromstring(junit_xml(result()))
    assert (root.tag, root.attrib) == (
        "testsuites",
        {"name": "toolkit gate", "tests": "8", "failures": "1", "errors": "1"},
    )
    (suite,) = root
    assert suite.attrib == {
        "name": "m-ort-cpu-int8", "tests": "8", "failures": "1", "errors": "1", "skipped": "1", "time": "0",
    }  # fmt: skip
    # In the schema all testcases come before a suite's system-out, and a case has its name.
    assert [child.tag for child in suite] == ["testcase"] * 8 + ["system-out"]
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == list(CHECKS)
    assert all(set(case.attrib) == {"name", "classname", "time"} for case in cases)
    assert [[child.tag for child in case] for case in cases] == [
        [], [], [], ["failure"], ["skipped"], ["error"], [], [],
    ]  # fmt: skip
    failure = cases[3][0]
    assert failure.get("type") == "DriftError"
    assert failure.text == "50% of <a|b>,\nline: two\ufffd\nsecond"


def test_workflow_commands_are_escaped_and_one_a_subject():
    assert workflow_commands(result()) == [
        "::error file=r%2C1.yaml,line=7,title=toolkit gate%3A m-ort-cpu-int8"
        "::50%25 of <a|b>,%0Aline: two\x1b%0Asecond%0Acould not",
        "::notice file=r%2C1.yaml,line=7,title=toolkit gate%3A m-ort-cpu-int8::smaller",
        "::warning file=r%2C1.yaml,line=7,title=toolkit gate%3A m-ort-cpu-int8::torch changed",
        "::warning title=toolkit gate::other is in the baseline but was not run",
    ]


def test_markdown_has_the_verdict_first_and_lets_no_text_break_its_table():
    lines = markdown(result()).splitlines()
    assert lines[0] == "## Drift gate: FAILED: 1 of 1 subject: m-ort-cpu-int8"
    widths = {line.count("|") for line in lines if line.startswith("| ")}
    assert widths == {11}
    assert "- m-ort-cpu-int8: 50% of \\<a\\|b\\>, line: two" in "\n".join(lines)
