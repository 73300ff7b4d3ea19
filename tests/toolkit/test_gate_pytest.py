"""The gate's pytest plug-in, in a pytest of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_bundles import image_bundle

from toolkit.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """A tiny bundle, its baseline, and a recipe, which only collecting reads."""
    image_bundle(tmp_path / "tiny")
    baseline = str(tmp_path / "b.json")
    assert CliRunner().invoke(main, ["gate", str(tmp_path / "tiny"), "--baseline", baseline, "--update"]).exit_code == 0
    (tmp_path / "mini.yaml").write_text("model: vit-digits\ntargets: [ort-cpu-int8, ort-cpu-fp16]\n", encoding="utf-8")
    (tmp_path / "test_other.py").write_text("def test_other(): pass\n", encoding="utf-8")
    return tmp_path


def run(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "toolkit.gate.pytest_plugin", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_bundle_has_an_item_for_each_check_and_fails_with_its_sentence(project):
    told = run(project, "--toolkit-bundle", "tiny", "--toolkit-baseline", "b.json", "-v", "-W", "error")
    assert told.returncode == 0, told.stdout
    assert "tiny::ort-cpu-fp32::drift PASSED" in told.stdout
    assert "test_other.py::test_other PASSED" in told.stdout
    assert "9 passed" in told.stdout
    data = json.loads((project / "b.json").read_text(encoding="utf-8"))
    data["subjects"]["tiny-ort-cpu-fp32"]["artefact"]["bytes"] = 1000
    (project / "b.json").write_text(json.dumps(data), encoding="utf-8")
    told = run(project, "--toolkit-bundle", "tiny", "--toolkit-baseline", "b.json", "-k", "size or drift")
    assert told.returncode == 1
    assert "\nwhat ships is worse than the baseline: size 5115 bytes, was 1000 bytes (tolerance 2%)\n" in told.stdout
    assert "Traceback" not in told.stdout
    assert "1 failed, 1 passed, 7 deselected" in told.stdout


def test_what_could_not_be_measured_is_never_green(project):
    (project / "tiny" / "added.txt").write_text("not in the manifest", encoding="utf-8")
    whole = run(project, "--toolkit-bundle", "tiny", "--toolkit-baseline", "b.json", "--ignore", "test_other.py")
    assert whole.returncode == 1
    assert "1 failed, 7 skipped" in whole.stdout
    chosen = run(project, "--toolkit-bundle", "tiny", "--toolkit-baseline", "b.json", "-k", "drift")
    assert chosen.returncode == 1, chosen.stdout
    assert "added.txt: not listed in the manifest" in chosen.stdout
    assert "1 failed, 8 deselected" in chosen.stdout


def test_a_recipe_is_collected_without_running_it(project):
    told = run(project, "--toolkit-recipe", "mini.yaml", "--collect-only", "-q", "--ignore", "test_other.py")
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[:4] == [
        f"mini.yaml::{target}::{check}" for target in ("ort-cpu-int8", "ort-cpu-fp16") for check in ("stages", "gate")
    ]


def test_wrong_input_is_said_before_any_test_runs(project):
    (project / "mini.yaml").write_text("model: vit-digits\ntarget: [ort-cpu-int8]\n", encoding="utf-8")
    told = run(project, "--toolkit-recipe", "mini.yaml")
    assert told.returncode == pytest.ExitCode.USAGE_ERROR
    assert "mini.yaml, line 2, column 1: unknown key 'target'" in told.stderr
    told = run(project, "--toolkit-bundle", "tiny", "--toolkit-baseline", "none.json")
    assert "there is no baseline none.json" in told.stderr


def test_without_its_options_it_imports_nothing_heavy(project):
    (project / "test_other.py").write_text(
        "import sys\n\ndef test_other():\n"
        "    assert 'toolkit.gate.pytest_plugin' in sys.modules\n"
        "    heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'click', 'toolkit.errors'}\n"
        "    assert not heavy & set(sys.modules)\n",
        encoding="utf-8",
    )
    # Other plug-ins of this environment may import numpy themselves.
    told = run(project, "-p", "no:hypothesispytest", "-p", "no:anyio")
    assert told.returncode == 0, told.stdout
