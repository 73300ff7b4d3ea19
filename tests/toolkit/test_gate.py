"""`toolkit gate`: budgets and a baseline, on vit-digits and on tiny bundles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from tiny_bundles import image_bundle

from toolkit.cli import main
from toolkit.gate.baseline import read_baseline
from toolkit.gate.result import CHECKS, worst_code

RECIPE = "version: 1\nmodel: vit-digits\ntargets:\n- ort-cpu-int8\n"


@pytest.fixture(autouse=True)
def outside_github(monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(tmp_path, gated_digits, monkeypatch):
    """A folder with a recipe, its bundle and the baseline of both, which is the current one."""
    folder = tmp_path / "project"
    shutil.copytree(gated_digits, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny bundle beside a baseline of it, in the current folder."""
    image_bundle(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert gate("tiny", "--baseline", "b.json", "--update").exit_code == 0
    return tmp_path


def gate(*arguments):
    return CliRunner().invoke(main, ["gate", *map(str, arguments)])


def answer(*arguments, code):
    result = gate(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def edited(path, change):
    """The baseline with one thing changed by hand."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    change(data)
    Path(path).write_text(json.dumps(data), encoding="utf-8")


def states(subject):
    return {check["name"]: check["state"] for check in subject["checks"]}


BUNDLE = "bundles/vit-digits-ort-cpu-int8"
INT8 = "vit-digits-ort-cpu-int8"


@pytest.mark.heavy
def test_a_recipe_and_its_bundle_are_one_subject(project):
    record = read_baseline(Path("drift-baseline.json")).subjects[INT8]
    assert list(record.stages) == ["export", "quantize", "engine"]
    assert record.stages["engine"].outputs["logits"]["sqnr_db"] > 40
    assert record.artefact.operators.attention == {"toolkit.cpu::Attention": 4}
    assert sum(record.artefact.operators.quantized.values()) == 25
    checked = answer(BUNDLE, "--baseline", "drift-baseline.json", code=0)
    assert checked["subjects"][0]["stages"] == checked["subjects"][0]["baseline"]["stages"]
    assert set(states(checked["subjects"][0]).values()) == {"passed"}


@pytest.mark.heavy
def test_a_slow_creep_within_the_gate_is_caught(project):
    def higher(data):
        data["subjects"][INT8]["stages"]["engine"]["outputs"]["logits"]["sqnr_db"] += 0.6

    edited("drift-baseline.json", higher)
    result = gate(BUNDLE, "--baseline", "drift-baseline.json")
    assert result.exit_code == 6
    assert "engine, output 'logits' is worse than the baseline: SQNR 44." in result.stdout
    assert gate(BUNDLE).exit_code == 0, "its own gate holds"
    assert gate(BUNDLE, "--baseline", "drift-baseline.json", "--tolerance", "sqnr=0.7").exit_code == 0
    assert gate(BUNDLE, "--baseline", "drift-baseline.json", "--update").exit_code == 0
    assert gate(BUNDLE, "--baseline", "drift-baseline.json").exit_code == 0


@pytest.mark.heavy
def test_a_recipe_that_breaks_its_gate_is_not_recorded_and_ends_no_other(project):
    Path("recipes/digits.yaml").write_text(f"{RECIPE}- ort-cpu-fp16\ngate: {{sqnr: 60}}\n", encoding="utf-8")
    before = read_baseline(Path("drift-baseline.json"))
    result = gate("recipes/digits.yaml", "--baseline", "drift-baseline.json", "--update", "--github")
    assert result.exit_code == 6
    after = read_baseline(Path("drift-baseline.json"))
    assert after.subjects[INT8] == before.subjects[INT8]
    assert "vit-digits-ort-cpu-fp16" in after.subjects
    assert f"FAIL: {INT8}: quantize, output 'logits': SQNR 44.78 dB is below the gate's 60 dB" in result.stdout
    assert f"not recorded: {INT8}" in result.stdout
    assert f"::error file=recipes/digits.yaml,line=4,title=toolkit gate%3A {INT8}::quantize" in result.stdout
    assert "worse than the baseline" not in result.stdout


def test_the_same_inputs_are_the_same_bytes(tiny):
    def written(name):
        told = gate("tiny", "--baseline", "b.json", "--junit", f"{name}/j.xml", "--summary", f"{name}/s.md").stdout
        return told, *(path.read_bytes() for path in sorted(Path(name).iterdir()))

    assert written("one") == written("two")
    before = Path("b.json").read_bytes()
    assert "no change" in gate("tiny", "--baseline", "b.json", "--update").stdout
    assert Path("b.json").read_bytes() == before
    Path("b.json").unlink()
    assert gate("tiny", "--baseline", "b.json", "--update").exit_code == 0
    assert Path("b.json").read_bytes() == before


def test_an_improvement_passes_and_says_how_to_keep_it(tiny):
    def lower(data):
        data["subjects"]["tiny-ort-cpu-fp32"]["artefact"]["bytes"] *= 2

    edited("b.json", lower)
    result = gate("tiny", "--baseline", "b.json")
    assert result.exit_code == 0
    assert "better: tiny-ort-cpu-fp32: what ships is better than the baseline: size" in result.stdout
    assert "--update" in result.stdout
    recorded = gate("tiny", "--baseline", "b.json", "--update").stdout
    assert "recorded: tiny-ort-cpu-fp32: artefact.bytes" in recorded
    assert "better:" not in gate("tiny", "--baseline", "b.json").stdout


def test_a_subject_that_the_baseline_does_not_know_fails_with_the_command_to_add_it(tiny):
    edited("b.json", lambda data: data["subjects"].update(gone=data["subjects"].pop("tiny-ort-cpu-fp32")))
    result = gate("tiny", "--baseline", "b.json")
    assert result.exit_code == 6
    assert "add it: toolkit gate tiny --baseline b.json --update" in result.stdout
    assert "warning: gone is in the baseline but was not run" in result.stdout
    assert gate("tiny", "--baseline", "b.json", "--update").exit_code == 0
    assert sorted(read_baseline(Path("b.json")).subjects) == ["gone", "tiny-ort-cpu-fp32"]


def test_a_gate_that_is_broken_is_exit_code_6_and_never_recorded(tmp_path, monkeypatch):
    image_bundle(tmp_path / "moved", spoil=0.5)
    monkeypatch.chdir(tmp_path)
    told = answer("moved", "--baseline", "b.json", "--update", code=6)
    assert states(told["subjects"][0])["gate"] == "failed"
    assert read_baseline(Path("b.json")).subjects == {}


def test_a_failing_stage_and_a_forged_bundle_end_no_other_and_the_worst_code_wins(tiny, own_module, monkeypatch):
    by_data = own_module.replace("        q, k, v", "        x = x * 2 if float(x.sum()) > 1e9 else x\n        q, k, v")
    Path("breaking.py").write_text(by_data, encoding="utf-8")
    monkeypatch.syspath_prepend(tiny)
    Path("breaking.yaml").write_text("model: breaking:make\ntargets: [ort-cpu-fp32]\n", encoding="utf-8")
    Path("unknown.yaml").write_text("model: ./nowhere\ntargets: [ort-cpu-fp32]\n", encoding="utf-8")
    shutil.copytree("tiny", "forged")
    edited("forged/manifest.json", lambda data: data["model"].update(name="forged"))
    Path("forged/model.onnx.data").write_bytes(b"other weights")
    arguments = ("forged", "unknown.yaml", "tiny")
    told = answer(*arguments, "--junit", "j.xml", code=2)
    assert [subject["exit_code"] for subject in told["subjects"]] == [2, 2, 0]
    told = answer("breaking.yaml", *arguments, "--junit", "j.xml", code=5)
    assert [subject["exit_code"] for subject in told["subjects"]] == [5, 2, 2, 0]
    assert states(told["subjects"][0]) == {"stages": "error"} | dict.fromkeys(CHECKS[1:], "skipped")
    root = ElementTree.parse("j.xml").getroot()
    assert (root.get("tests"), root.get("errors"), root.get("failures")) == ("32", "3", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny", "--baseline", "missing.json"), "there is no baseline missing.json"),
        (("tiny", "--update"), "are for a baseline"),
        (("tiny", "--baseline", "b.json", "--tolerance", "sqr=1"), "Did you mean"),
        (("tiny", "--baseline", "b.json", "--tolerance", "sqnr=-1"), "'-1' is no tolerance"),
        (("tiny", "tiny"), "are both tiny-ort-cpu-fp32"),
        (("nothing.yaml",), "cannot read nothing.yaml"),
        (("tiny", "--baseline", "broken.json"), "not a valid drift baseline"),
        (("tiny", "--baseline", "b.json/x.json", "--update"), "cannot write b.json/x.json"),
    ],
)
def test_wrong_input_is_refused_before_any_work(tiny, arguments, message):
    Path("broken.json").write_text('{"subjects": {"a": {}}}', encoding="utf-8")
    result = gate(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_tolerances_are_stored_by_an_update_alone(tiny):
    before = Path("b.json").read_bytes()
    assert gate("tiny", "--baseline", "b.json", "--tolerance", "sqnr=2,max-abs=off").exit_code == 0
    assert Path("b.json").read_bytes() == before
    gate("tiny", "--baseline", "b.json", "--tolerance", "sqnr=2,max-abs=off,size=5%", "--update")
    assert read_baseline(Path("b.json")).tolerances == {"sqnr": 2.0, "max_abs": None, "size": 5.0}
    gate("tiny", "--baseline", "b.json", "--tolerance", "sqnr=0.5", "--update")
    assert read_baseline(Path("b.json")).tolerances == {"max_abs": None, "size": 5.0}


def test_github_gets_annotations_and_a_summary_that_is_appended(tiny, monkeypatch):
    edited("b.json", lambda data: data["subjects"]["tiny-ort-cpu-fp32"]["artefact"].update(bytes=10))
    (tiny / "summary.md").write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tiny.parent))
    result = gate("tiny", "--baseline", "b.json")
    assert result.exit_code == 6
    line = next(line for line in result.stdout.splitlines() if line.startswith("::error "))
    place = f"file={tiny.name}/tiny/manifest.json,line=1,title=toolkit gate%3A tiny-ort-cpu-fp32"
    assert line.startswith(f"::error {place}::what ships is worse")
    assert "(tolerance 2%25)" in line
    summary = (tiny / "summary.md").read_text(encoding="utf-8").splitlines()
    assert summary[:2] == ["before", "## Drift gate: FAILED: 1 of 1 subject: tiny-ort-cpu-fp32"]
    assert any(row.startswith("| tiny-ort-cpu-fp32 | FAIL | engine |") for row in summary)
    assert any(row.startswith("- tiny-ort-cpu-fp32: what ships is worse") for row in summary)
    told = gate("tiny", "--baseline", "b.json", "--json")
    assert json.loads(told.stdout)["exit_code"] == 6
    assert told.stderr.startswith("::error ")


def test_the_worst_code_is_what_could_not_be_measured():
    assert worst_code([0, 6, 2, 4, 3, 5]) == 5
    assert worst_code([6, 0, 2]) == 2
    assert worst_code([0, 6]) == 6
    assert worst_code([]) == 0
