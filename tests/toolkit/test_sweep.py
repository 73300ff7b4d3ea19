"""Real sweeps on this machine: passed, failed, refused and timed out runs side by side, and a driver killed midway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from odd_models import SOURCE

from toolkit.bundle.read import open_bundle, verify_hashes
from toolkit.cli import main
from toolkit.recipe.file import read_recipe

pytestmark = pytest.mark.heavy

SWEEP = """
models:
  - {model: "odd:crash_planning", targets: [ort-cpu-fp32]}
  - {model: "odd:crash", targets: [ort-cpu-fp32]}
  - vit-digits
targets: [ort-cpu-int8]
recipes:
  - name: strict
    gate: {sqnr: 90}
"""
SMALL = "model: own:make\ntargets: [ort-cpu-fp32, ort-cpu-fp16]\n"


def write_odd(folder: Path, own_module: str) -> None:
    (folder / "own.py").write_text(own_module)
    (folder / "odd.py").write_text(SOURCE)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "toolkit", "sweep", *map(str, arguments)]


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, sys.path))
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command(*arguments), cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def finished(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    return out, said


def rows(folder: Path) -> set[tuple[Any, ...]]:
    """Each run's last row without what differs from one time to the next."""
    last = {row["key"]: row for row in map(json.loads, (folder / "rows.jsonl").read_text().splitlines())}
    names = ("key", "run", "model", "target", "recipe", "status", "task", "error")
    return {(*(row[name] for name in names), row["cosine"] and round(row["cosine"], 6)) for row in last.values()}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, own_module: str) -> Path:
    """A sweep that nothing disturbed, in `whole`, and what it was made from."""
    place = tmp_path_factory.mktemp("sweep")
    write_odd(place, own_module)
    (place / "sweep.yaml").write_text(SWEEP)
    (place / "small.yaml").write_text(SMALL)
    process = start(place, "sweep.yaml", "small.yaml", "--output", "whole", "--jobs", 2, "--json")
    (place / "answer.json").write_text(finished(process, 5)[0])
    return place


def test_every_run_has_its_row_whatever_became_of_it(folder: Path) -> None:
    answer = json.loads((folder / "answer.json").read_text())
    assert [(row["model"], row["target"], row["recipe"], row["status"]) for row in answer["rows"]] == [
        ("odd:crash_planning", "ort-cpu-fp32", "strict", "failed"),
        ("odd:crash", "ort-cpu-fp32", "strict", "failed"),
        ("vit-digits", "ort-cpu-int8", "strict", "drifted"),
        ("own:make", "ort-cpu-fp32", "small", "ok"),
        ("own:make", "ort-cpu-fp16", "small", "ok"),
    ]
    assert answer["counts"] == {"failed": 2, "drifted": 1, "ok": 2}
    errors = [row["error"] for row in answer["rows"]]
    assert "no such weights" in errors[0]
    assert "SIGSEGV" in errors[1]
    assert "below the gate's 90 dB" in errors[2]
    assert 30 < answer["rows"][2]["sqnr_db"] < 60


def test_what_passed_is_a_bundle_and_what_did_not_is_a_log(folder: Path) -> None:
    whole = folder / "whole"
    for row in json.loads((folder / "answer.json").read_text())["rows"]:
        log, recipe = (whole / f"{row['run']}.log").read_text(), read_recipe(whole / f"{row['run']}.yaml")
        assert recipe.targets == (row["target"],)
        if row["status"] == "ok":
            (bundle,) = (whole / row["run"]).iterdir()
            assert verify_hashes(open_bundle(bundle)) == []
            assert row["bytes"] == sum(entry.bytes for entry in open_bundle(bundle).manifest.files.values())
            assert "bundle" in log
        else:
            assert not (whole / row["run"]).exists()
            assert row["error"][:50] in " ".join(log.split())
    assert len((whole / "sweep.csv").read_text().splitlines()) == 6
    assert not list(whole.glob(".*"))


def test_a_driver_that_is_killed_is_gone_on_with(folder: Path) -> None:
    cut = folder / "cut"
    driver = start(folder, "small.yaml", "--output", cut, "--jobs", 1)
    wait_for(lambda: any("reference" in log.read_text() for log in cut.glob("*fp16*.log")))
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    assert family
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert len((cut / "rows.jsonl").read_text().splitlines()) == 1
    finished(start(folder, "small.yaml", "--output", cut), 0)
    assert len((cut / "rows.jsonl").read_text().splitlines()) == 2
    assert rows(cut) == {row for row in rows(folder / "whole") if "small" in row}
    files = {path.name for path in (folder / "whole").iterdir() if "small" in path.name}
    assert {path.name for path in cut.iterdir()} == {*files, "rows.jsonl", "sweep.csv"}


def test_ctrl_c_ends_the_runs_and_says_how_to_go_on(folder: Path) -> None:
    (folder / "hang.yaml").write_text("model: odd:hang\ntargets: [ort-cpu-fp32, ort-cpu-int8]\n")
    driver = start(folder, "hang.yaml", "--output", "hang", "--jobs", 2)
    wait_for(lambda: len(list((folder / "hang").glob("*.log"))) == 2)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGINT)
    _, said = finished(driver, 130)
    assert "the same command does the rest" in said
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert (folder / "hang" / "rows.jsonl").read_text() == ""


def test_a_run_that_hangs_is_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "limit.yaml").write_text("model: odd:hang\ntargets: [ort-cpu-fp32]\n")
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(main, ["sweep", "limit.yaml", "--output", "limit", "--timeout", "2", "--json"])
    assert result.exit_code == 5, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["status"], row["error"]) == ("timeout", "took longer than the limit of 2 s and was stopped")
    assert row["error"] in (folder / "limit" / f"{row['run']}.log").read_text()


def test_what_a_runtime_does_not_take_is_refused_before_anything_runs(folder: Path) -> None:
    (folder / "refused.yaml").write_text(
        "models: [vit-digits, nosuchmodel]\ntargets: [ort-cpu-fp32, coreml-int3]\n"
        "recipes:\n  - {name: plain}\n  - {name: smooth, quantization: {smoothing: 0.5}}\n"
    )
    process = start(folder, "refused.yaml", "--output", "refused", "--dry-run", "--json")
    runs = json.loads(finished(process, 0)[0])["runs"]
    states = {(run["model"], run["target"], run["recipe"]): (run["state"], run["reason"]) for run in runs}
    assert states.pop(("vit-digits", "ort-cpu-fp32", "plain")) == ("to run", "")
    assert {state for state, _ in states.values()} == {"refused"}
    assert "has no 'smoothing'" in states["vit-digits", "ort-cpu-fp32", "smooth"][1]
    assert "coreml-int3" in states["vit-digits", "coreml-int3", "plain"][1]
    assert "nosuchmodel" in states["nosuchmodel", "ort-cpu-fp32", "plain"][1]
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--jobs", "2", "--ray", "auto"), "--jobs is for this machine"),
        (("--ray-cpus", "2"), "--ray-cpus is for --ray"),
        (("--ray", "local"), "'local' is no address of a Ray cluster"),
        (("--ray", "127.0.0.1:1"), "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: vit-digits\ntargets: [ort-cpu-fp32]\n")
    result = CliRunner().invoke(main, ["sweep", str(tmp_path / "a.yaml"), "--output", str(tmp_path / "o"), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "hint: " in result.stderr
