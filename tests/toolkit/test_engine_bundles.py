"""Engines through the command line: bundles with and without one, `--require-engine`, `check --rebuild`, `inspect`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny_bundles import image_bundle

from runtimes._tensorrt.runtime import TensorRT
from toolkit import plugins
from toolkit.bundle.read import open_bundle
from toolkit.cli import main
from toolkit.hashing import file_sha256

pytestmark = [
    pytest.mark.requires_rtx,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="tensorrt_rtx is not installed (pip install 'tensorrt-rtx-cu13>=1.7')",
    ),
    pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed: it may build"),
]
ALONE = TensorRT("trt", ("tensorrt",))
"""A runtime whose library is not installed."""


def toolkit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def export(*arguments: object) -> Result:
    return toolkit("export", "--model", "own_attention:make", "--dim", "batch=1:2:4", *arguments)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, own_module: str) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "own_attention.py").write_text(own_module)
    return folder


@pytest.fixture(autouse=True)
def _no_tensorrt(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.trt.RUNTIME", ALONE)
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))


@pytest.fixture(scope="module")
def bundles(workplace: Path) -> dict[str, Path]:
    """One graph for two targets, of which only trt-rtx finds a builder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtimes.trt.RUNTIME", ALONE)
        patch.chdir(workplace)
        patch.syspath_prepend(str(workplace))
        targets = ("--target", "trt-int8", "--target", "trt-rtx-int8")
        done = export(*targets, "--arch", "sm86,sm89", "--output", "out")
    assert done.exit_code == 0, done.output
    assert "for sm86, sm89: 2 of 2 GEMMs int8, 1 of 1 attentions fused" in done.stderr
    return {name: next((workplace / "out").glob(f"*-{name}-int8")) for name in ("trt", "trt-rtx")}


def edit(bundle: Path, name: str, change: Any) -> None:
    """Change a JSON file of a bundle, and its entry in the manifest with it."""
    value = json.loads((bundle / name).read_text())
    change(value)
    forge(bundle, name, json.dumps(value).encode())


def forge(bundle: Path, name: str, content: bytes) -> None:
    """Put another file in a file's place, and into the manifest."""
    path, manifest = bundle / name, json.loads((bundle / "manifest.json").read_text())
    path.write_bytes(content)
    manifest["files"][name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_without_an_engine_carries_what_builds_one(bundles: dict[str, Path], tmp_path: Path) -> None:
    manifest = open_bundle(bundles["trt"]).manifest
    assert manifest.engine.status == "graph-only"
    assert manifest.engine.files == ("build_engine.py", "engine.lock.json")
    assert manifest.engine.details["command"].startswith("trtexec --onnx=model.onnx ")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = [sys.executable, "-P", bundles["trt"] / "build_engine.py", "--library", "tensorrt_rtx"]
    done = subprocess.run(
        [*script, "--output", tmp_path], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    for name in ("engine-sm86.plan", "engine-sm89.plan"):
        assert (tmp_path / name).read_bytes() == (bundles["trt-rtx"] / name).read_bytes()


def test_require_engine_refuses_and_leaves_nothing(workplace: Path) -> None:
    done = export("--target", "trt-fp16", "--require-engine", "--output", "none")
    assert done.exit_code == 4
    assert "no trt-fp16 engine can be built here: tensorrt is not installed" in done.stderr
    assert "load " not in done.stderr
    assert not (workplace / "none").exists()


@pytest.mark.parametrize("target", ["ort-cuda-fp16", "ort-trt-fp16"])
def test_require_engine_is_for_every_runtime(target: str, workplace: Path) -> None:
    if not plugins.runtime(target.removesuffix("-fp16")).readiness().build:
        done = export("--target", "ort-cpu-fp32", "--target", target, "--require-engine", "--output", "none")
        assert (done.exit_code, f"no {target} engine can be built here: " in done.stderr) == (4, True)
        assert not (workplace / "none").exists()
    assert export("--target", "ort-cpu-fp32", "--require-engine", "--dry-run").exit_code == 0


def test_what_is_not_offered_is_refused_before_any_work(workplace: Path) -> None:
    done = export("--target", "trt-rtx-fp16", "--arch", "sm42", "--output", "none")
    assert done.exit_code == 4
    assert "does not compile for sm42" in done.stderr
    assert "hint: It compiles for: sm75, sm80" in done.stderr
    assert "load " not in done.stderr
    assert not (workplace / "none").exists()


def test_limits_reach_the_build(bundles: dict[str, Path]) -> None:
    done = toolkit("check", bundles["trt-rtx"], "--rebuild", "--build-memory", 1)
    assert done.exit_code == 5
    assert "sm86: TensorRT's builder used" in done.stderr
    assert "hint: Allow it more MiB: --build-memory" in done.stderr


def test_rebuild_finds_the_same_bytes(bundles: dict[str, Path]) -> None:
    done = toolkit("check", bundles["trt-rtx"], "--rebuild")
    assert done.exit_code == 0, done.output
    assert "2 of 2 engines are the same, built again by tensorrt_rtx" in done.stdout
    answer = json.loads(toolkit("check", bundles["trt-rtx"], "--rebuild", "--json").stdout)
    assert answer["same"]
    assert [engine["name"] for engine in answer["engines"]] == ["sm86", "sm89"]


def test_rebuild_names_what_differs(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(bundles["trt-rtx"], tmp_path / "bundle")
    forge(bundle, "engine-sm86.plan", b"another engine")
    done = toolkit("check", bundle, "--rebuild")
    assert (done.exit_code, "engine.lock.json is not the lock of engine-sm86.plan" in done.stderr) == (2, True)
    entry = {"sha256": file_sha256(bundle / "engine-sm86.plan"), "bytes": len(b"another engine")}
    edit(bundle, "engine.lock.json", lambda lock: lock["engines"]["sm86"].update(entry))
    done = toolkit("check", bundle, "--rebuild", "--json")
    assert done.exit_code == 5
    assert [engine["same"] for engine in json.loads(done.stdout)["engines"]] == [False, True]
    assert "engine-sm86.plan has" in done.stderr
    assert "engine-sm89.plan" not in done.stderr


def test_rebuild_looks_at_the_files_first(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(bundles["trt-rtx"], tmp_path / "bundle")
    (bundle / "engine-sm86.plan").write_bytes(b"something else")
    done = toolkit("check", bundle, "--rebuild")
    assert (done.exit_code, "engine-sm86.plan: changed" in done.stderr) == (2, True)


def test_rebuild_wants_the_graph_that_drift_is_measured_on(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(bundles["trt-rtx"], tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    shutil.copyfile(bundle / "model.onnx", bundle / "other.onnx")
    manifest["graph"], manifest["files"]["other.onnx"] = "other.onnx", manifest["files"]["model.onnx"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = toolkit("check", bundle, "--rebuild")
    assert (done.exit_code, "are of model.onnx, its graph is other.onnx" in done.stderr) == (2, True)


def test_rebuild_where_nothing_was_compiled(bundles: dict[str, Path], tmp_path: Path) -> None:
    done = toolkit("check", bundles["trt"], "--rebuild")
    assert (done.exit_code, "holds no engine, only its graph" in done.stderr) == (4, True)
    done = toolkit("check", image_bundle(tmp_path / "image"), "--rebuild")
    assert (done.exit_code, "nothing was compiled" in done.stderr) == (4, True)
    assert "ort-cpu runs the graph itself" in done.stderr


def test_options_that_say_nothing_are_refused(bundles: dict[str, Path]) -> None:
    assert toolkit("check", bundles["trt-rtx"], "--rebuild", "--on-cpu").exit_code == 2
    assert toolkit("check", bundles["trt-rtx"], "--build-memory", 100).exit_code == 2


def test_inspect_shows_what_engines_run(bundles: dict[str, Path]) -> None:
    shown = toolkit("inspect", bundles["trt-rtx"]).stdout
    for name in ("sm86", "sm89"):
        (row,) = [line for line in shown.splitlines() if line.startswith(name)]
        assert "1 of 1" in row
        assert row.endswith("2 of 2 int8")
    answer = json.loads(toolkit("inspect", bundles["trt-rtx"], "--json").stdout)
    engines = answer["bundle"]["engine"]["details"]["engines"]
    assert engines["sm89"]["gemms"] == {"int8": 2}
    assert "architecture" not in toolkit("inspect", bundles["trt"]).stdout.splitlines()


def test_both_kinds_pass_the_check(bundles: dict[str, Path]) -> None:
    for bundle in bundles.values():
        done = toolkit("check", bundle)
        assert done.exit_code == 0, done.output


def test_the_matrix_reads_bundles_and_keeps_failures(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A bundle that is there is not made again, nor is what failed tried again."""
    model, script = "own_attention:make", Path(__file__).parents[2] / "benchmarks" / "tensorrt_matrix.py"
    made = tmp_path / "work" / model
    made.mkdir(parents=True)
    shutil.copytree(bundles["trt-rtx"], made / bundles["trt-rtx"].name)
    command = [sys.executable, script, "--models", model, "--schemes", "int8,none-such", "--arch", "sm86,sm89"]
    command += ["--work", tmp_path / "work", "--output", tmp_path / "matrix.md"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{model}: none-such" in done.stderr
    table = (tmp_path / "matrix.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith(f"| {model}")]
    assert [row[1:4] for row in rows] == [
        ["int8", "sm86", "built"], ["int8", "sm89", "built"], ["none-such", "-", "failed[^1]"]
    ]  # fmt: skip
    assert [row[6:8] for row in rows[:2]] == [["1 of 1", "2 of 2 int8"]] * 2
    worst = open_bundle(bundles["trt-rtx"]).manifest.drift.worst["lower"]
    assert rows[0][8] == f"{worst.sqnr_db:.1f}"
    assert "[^1]: own_attention:make, none-such: exit code 2: unknown target 'trt-rtx-none-such'" in table
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert f"{model}: " not in again.stderr
