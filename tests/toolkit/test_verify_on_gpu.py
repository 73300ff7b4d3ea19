"""The GPU checklist: honest and quick without a GPU, and its steps run, judged and reported with real commands."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from tiny_bundles import image_bundle

from runtimes._onnxruntime import gpu
from runtimes._tensorrt.devices import devices

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    names = ("gpu_steps", "gpu_report", "gpu_models", "gpu_checklist")
    try:
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(SCRIPTS))


def read(folder: Path) -> dict[str, dict]:
    answer = json.loads((folder / "report.json").read_text())
    return {step["name"]: step for step in answer["steps"]}


@pytest.mark.skipif(bool(devices()[0]), reason="a device is present: the whole list would run")
def test_without_a_gpu_it_says_so_quickly_and_installs_nothing(tmp_path: Path) -> None:
    start = time.monotonic()
    command = [str(SCRIPTS / "verify_on_gpu"), "--output", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert time.monotonic() - start < 10
    steps = read(tmp_path / "report")
    assert steps["gpu"]["reason"] == devices()[1]
    assert {step["verdict"] for step in steps.values()} == {"not run"}
    assert {"tests", "export", "check", "drift", "bench"} <= set(steps)
    assert "0 passed, 0 failed" in (tmp_path / "report" / "report.md").read_text()


def test_wrong_usage() -> None:
    done = subprocess.run([SCRIPTS / "verify_on_gpu", "--with", "luck"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "tensorrt" in done.stderr


def test_no_failure_stops_the_rest(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    steps, python = scripts["gpu_steps"], sys.executable
    checklist = steps.Checklist(tmp_path, seconds=2, written=scripts["gpu_report"].write)
    step = steps.Step

    def judge(output: str) -> tuple[str, dict]:
        return ("" if output.strip() == "good" else "not good", {"printed": output.strip()})

    for one in (
        step("good", [python, "-c", "print('good')"], judge=judge),
        step("bad", [python, "-c", "print('bad')"], judge=judge),
        step("odd", [python, "-c", "print('x')"], judge=json.loads),
        step("fails", [python, "-c", "import sys; print('error: broken', file=sys.stderr); print('x'); sys.exit(5)"]),
        step("cannot", [python, "-c", "import sys; sys.exit('error: no such scheme')"], ("good",)),
        step("unsupported", [python, "-c", "import sys; print('error: not here'); sys.exit(4)"], toolkit=True),
        step("pytest's four", [python, "-c", "import sys; sys.exit(4)"]),
        step("slow", [python, "-c", "import time; time.sleep(60)"]),
        step("missing", [str(tmp_path / "no-such-program")]),
        step("behind", [python, "-c", ""], ("good", "fails")),
        step("last", lambda: [python, "-c", "import os; print(os.environ['EXTRA'])"], (), {"EXTRA": "good"}, judge),
    ):
        checklist.run(one)
    found = {name: (one["verdict"], one["reason"]) for name, one in read(tmp_path).items()}
    assert found["good"] == found["last"] == ("passed", "")
    assert found["bad"] == ("failed", "not good")
    assert found["odd"][0] == "failed"
    assert "not as expected" in found["odd"][1]
    assert found["fails"] == ("failed", "exit code 5: error: broken")
    assert found["unsupported"] == ("not run", "exit code 4: error: not here")
    assert found["pytest's four"][0] == "failed"
    assert found["slow"] == ("failed", "longer than 2 s")
    assert found["missing"][0] == "failed"
    assert found["behind"] == ("not run", "fails did not pass")
    assert checklist.exit_code == 1
    report = (tmp_path / "report.md").read_text()
    assert "| fails | failed |" in report
    assert "error: broken" in (tmp_path / read(tmp_path)["fails"]["log"]).read_text()


def test_only_what_is_asked_for_and_what_it_needs(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    steps, nothing = scripts["gpu_steps"], [sys.executable, "-c", ""]
    checklist = steps.Checklist(tmp_path, only=["bench vit"], always=["install"])
    checklist.run(steps.Step("install", nothing))
    checklist.run_all(
        [
            steps.Step("export vit", nothing, ("install",)),
            steps.Step("check vit", nothing, ("export vit",)),
            steps.Step("bench vit", nothing, ("export vit",)),
            steps.Step("bench bert", nothing, ("install",)),
        ]
    )
    passed = [outcome.name for outcome in checklist.outcomes if outcome.verdict == "passed"]
    assert passed == ["install", "export vit", "bench vit"]
    assert checklist.exit_code == 0
    # The second environment's.
    assert checklist.run(steps.Step("install of onnxruntime-gpu", nothing)).verdict == "passed"


def test_a_checklist_of_which_nothing_ran_has_not_passed(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    checklist = scripts["gpu_steps"].Checklist(tmp_path)
    checklist.note(scripts["gpu_steps"].Outcome("x", "not run"))
    assert checklist.exit_code == 1


def test_a_models_steps_read_what_the_toolkit_prints(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    """On the processor, where the commands work and the verdict must be that no device ran."""
    models, steps = scripts["gpu_models"], scripts["gpu_steps"]
    checklist = steps.Checklist(tmp_path, written=scripts["gpu_report"].write)

    def toolkit(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "toolkit", *arguments]

    pair = models.Pair("tiny", "tiny", "trt-rtx-fp16", tmp_path / "bundles", toolkit, ("doctor",))
    for target in ("trt-rtx-fp16", models.BASELINE):
        (tmp_path / "bundles" / f"tiny-{target}").mkdir(parents=True)
        image_bundle(tmp_path / "bundles" / f"tiny-{target}" / "any-name")
        checklist.note(steps.Outcome(f"export tiny {target}", "passed"))
    export, check, drift, torch, versus, graphs = pair.steps(checklist)
    assert list(export.command[3:]) == [
        "export", "--model", "tiny", "--target", "trt-rtx-fp16", "--output",
        str(tmp_path / "bundles" / "tiny-trt-rtx-fp16"), "--json",
    ]  # fmt: skip
    assert export.needs == ("doctor",)
    checked = checklist.run(check)
    assert (checked.verdict, checked.reason[:15]) == ("failed", "it ran on onnxr")
    assert checked.facts["device_sqnr_db"] > 100
    checklist.note(steps.Outcome(check.name, "passed", facts=checked.facts))
    assert checklist.run(drift).facts["graph_sqnr_db"] == checked.facts["device_sqnr_db"]
    timed = checklist.run(versus)
    assert timed.reason.startswith("it ran on onnxruntime")
    assert timed.facts["ratio"] > 0
    assert "samples/s" in timed.facts["contenders"]
    assert graphs.environment == {"TOOLKIT_CUDA_GRAPHS": "1"}
    assert "torch" in torch.command()
    report = (tmp_path / "report.md").read_text()
    assert "| SQNR dB on the device |" in report
    assert "| bench tiny trt-rtx-fp16 vs ort-cpu-fp32 |" in report


def test_what_doctor_and_the_list_say_decides_what_is_exported(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    models, checklist_of = scripts["gpu_models"], scripts["gpu_checklist"]
    python = [sys.executable, "-m", "toolkit"]
    doctor = subprocess.run([*python, "doctor", "--json"], capture_output=True, text=True, check=True, cwd=ROOT)
    listed = subprocess.run(
        [*python, "list", "targets", "--json"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    _, runs = models.ready(doctor.stdout)
    assert {"ort-cpu", "trt-rtx", "trt"} <= set(runs)
    assert runs["ort-cpu"] == ""
    checklist = scripts["gpu_steps"].Checklist(tmp_path)
    place = checklist_of.Place("gpu", (), ("ort-cpu", "no-such-runtime"))
    targets = place._targets(checklist, runs, models.kept(listed.stdout)[1])
    assert "ort-cpu-int8" in targets
    assert all(target.startswith("ort-cpu") for target in targets)
    assert checklist.outcomes[0].reason == "doctor does not know it"
    assert "environment gpu-ort" in checklist_of._places(frozenset({"cuda"}))[1]._installing()


def test_onnxruntimes_environment_has_the_libraries_that_its_providers_ask_for(scripts: dict[str, ModuleType]) -> None:
    first, second = scripts["gpu_checklist"]._places(frozenset({"cuda", "tensorrt"}))
    assert "tensorrt]" in first._installing()
    assert "tensorrt]" not in second._installing()
    for command in (gpu._INSTALL, gpu._INSTALL_TENSORRT):
        asked = command.partition("install '")[2].partition("'")[0]
        assert f"'{asked}'" in second._installing()
