"""docs/examples/drift-gate.yml: its steps, run here as a runner would, on vit-digits in a repository of its own.

What is left out: the actions (checkout, Python, cache, upload), and the `Install` step, since the toolkit is here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "docs" / "examples" / "drift-gate.yml"
INSTALL = "Install"


@pytest.fixture
def repository(tmp_path, gated_digits):
    """A clone, as checkout leaves it, of a repository with a recipe and a baseline."""
    origin = tmp_path / "origin"
    shutil.copytree(gated_digits, origin, ignore=shutil.ignore_patterns("bundles"))
    git(origin, "init", "--quiet", "--initial-branch", "main")
    commit(origin, "A recipe and its baseline")
    git(tmp_path, "clone", "--quiet", str(origin), "work")
    return tmp_path / "work"


def git(folder, *arguments):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder, message):
    git(folder, "add", "recipes", "drift-baseline.json")
    git(folder, "commit", "--quiet", "--message", message)


def steps():
    (job,) = YAML(typ="safe").load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values()
    return job["steps"]


def run_steps(repository, tmp_path):
    """The `run` steps in order, by the command that a runner uses; the code of the first that fails, and stdout."""
    binaries = tmp_path / "bin"
    binaries.mkdir(exist_ok=True)
    tool = binaries / "toolkit"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m toolkit "$@"\n', encoding="utf-8")
    tool.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(repository),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    told = ""
    for step in steps():
        if "run" not in step or step["name"] == INSTALL:
            continue
        script = tmp_path / "step.sh"
        script.write_text(step["run"], encoding="utf-8")
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
        told += done.stdout
        if done.returncode:
            return done.returncode, told
    return 0, told


def reports(repository):
    return [(repository / "reports" / name).read_bytes() for name in ("drift.xml", "drift.md")]


def test_the_workflow_installs_on_the_cpu_and_keeps_reports_of_failures():
    by_name = {step.get("name", step.get("uses")): step for step in steps()}
    assert by_name[INSTALL]["run"].splitlines()[0].endswith("--index-url https://download.pytorch.org/whl/cpu")
    keep = by_name["Keep the reports"]
    assert (keep["if"], keep["with"]["path"]) == ("always()", "reports")
    assert [step["uses"].partition("@")[0] for step in steps() if "uses" in step] == [
        "actions/checkout", "actions/setup-python", "actions/cache", "actions/upload-artifact",
    ]  # fmt: skip


@pytest.mark.heavy
def test_the_workflow_fails_on_a_regression_and_passes_before_and_after(repository, tmp_path):
    code, told = run_steps(repository, tmp_path)
    assert code == 0, told
    assert told.rstrip().endswith("PASSED: 1 subject within budget")
    before = reports(repository)

    recipe = repository / "recipes" / "digits.yaml"
    good = recipe.read_text(encoding="utf-8")
    recipe.write_text(f"{good}calibration: {{count: 1}}\nquantization: {{smoothing: off}}\n", encoding="utf-8")
    commit(repository, "Calibrate on one sample, without smoothing")
    code, told = run_steps(repository, tmp_path)
    assert code == 6, told
    assert "::error file=recipes/digits.yaml,line=4,title=toolkit gate%3A vit-digits-ort-cpu-int8::quantize" in told
    suite = ElementTree.fromstring(reports(repository)[0])[0]
    states = {case.get("name"): [child.tag for child in case] for case in suite.findall("testcase")}
    assert states["gate"] == [], "it is still within its gate: the baseline alone catches it"
    assert states["drift"] == ["failure"]
    assert "## Drift gate: FAILED" in (tmp_path / "summary.md").read_text(encoding="utf-8")

    git(repository, "revert", "--no-edit", "HEAD")
    assert recipe.read_text(encoding="utf-8") == good
    code, told = run_steps(repository, tmp_path)
    assert code == 0, told
    assert reports(repository) == before
