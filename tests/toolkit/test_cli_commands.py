"""`list`, `doctor`, `check` and `inspect` on real, tiny bundles."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_bundles import GATE, image_bundle, text_bundle

from toolkit import machine, plugins
from toolkit.cli import main
from toolkit.errors import UnsupportedError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    return {
        "image": image_bundle(root / "image"),
        "text": text_bundle(root / "text"),
        "moved": image_bundle(root / "moved", spoil=0.5),
        "built": image_bundle(root / "built", status="built"),
    }


def toolkit(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def answer(*arguments, code=0):
    result = toolkit(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("what", ["models", "families", "targets", "schemes", "runtimes"])
def test_list_names_what_is_in_the_folders(what):
    group = {"models": "model_zoo", "families": "model_zoo", "schemes": "quantize.schemes"}.get(what, "runtimes")
    rows = answer("list", what)
    listed = plugins.listing(group)
    if what == "models":
        assert {row["family"] for row in rows} <= set(listed)
    elif what == "targets":
        assert {row["runtime"] for row in rows} <= set(listed)
        assert all(row["name"] == f"{row['runtime']}-{row['scheme']}" for row in rows)
    else:
        assert [row["name"] for row in rows] == list(listed)
    plain = toolkit("list", what).stdout
    assert all(row["name"] in plain for row in rows)


def test_list_targets_has_every_scheme_of_the_gpu_runtimes():
    names = {row["name"] for row in answer("list", "targets")}
    assert {f"ort-cuda-{scheme}" for scheme in ("fp32", "fp16", "bf16", "int8", "int4")} <= names
    assert {f"ort-trt-{scheme}" for scheme in ("fp32", "fp16", "bf16", "int8")} <= names
    assert {f"trt{rtx}-{scheme}" for rtx in ("", "-rtx") for scheme in ("bf16", "fp8", "nvfp4")} <= names
    assert not {"ort-trt-int4", "ort-trt-fp8", "ort-cuda-fp8", "ort-cpu-bf16"} & names


def test_doctor_reports_this_machine_and_every_runtime():
    found = answer("doctor")
    assert found["machine"]["memory"] > 0
    assert {entry["name"] for entry in found["runtimes"]} == set(plugins.listing("runtimes"))
    cpu = next(entry for entry in found["runtimes"] if entry["name"] == "ort-cpu")
    assert cpu["build"]
    assert cpu["run"]
    libraries = {entry["name"]: entry for entry in found["libraries"]}
    assert libraries["click"]["version"] == importlib.metadata.version("click")
    assert libraries["click"]["required"]
    assert "ort-cpu" in toolkit("doctor").stdout


def test_doctor_reports_a_runtime_that_does_not_import(monkeypatch):
    real = plugins.runtime

    def broken(name):
        if name == "ort-cpu":
            raise ImportError("libfoo.so.7: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(machine, "runtime", broken)
    result = toolkit("doctor")
    assert result.exit_code == 0
    assert "ImportError: libfoo.so.7: cannot open shared object file" in result.stdout


def test_doctor_exits_3_when_a_base_library_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "base_requirements", lambda: ("click", "surely-not-installed"))
    result = toolkit("doctor")
    assert result.exit_code == 3
    assert "hint: pip install surely-not-installed" in result.stderr
    assert "MISSING" in result.stdout
    assert json.loads(toolkit("doctor", "--json").stdout)["libraries"][1]["version"] is None


def test_two_onnxruntimes_are_a_conflict(monkeypatch):
    real = machine._version
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(machine, "_version", lambda name: both.get(name) or real(name))
    assert any("pip uninstall -y onnxruntime onnxruntime-gpu" in line for line in machine.conflicts())
    assert "conflict: onnxruntime and onnxruntime-gpu" in toolkit("doctor").stdout


def test_base_requirements_are_those_of_the_project():
    assert {"click", "numpy", "onnx", "onnxruntime", "torch", "transformers"} <= set(machine.base_requirements())
    assert not {"pytest", "timm"} & set(machine.base_requirements())


@pytest.mark.parametrize("name", ["image", "text"])
def test_check_passes_a_bundle_as_it_was_written(bundles, name):
    result = toolkit("check", bundles[name])
    assert result.exit_code == 0, result.output
    assert "drift passed" in result.stdout
    report = answer("check", bundles[name])
    assert report["passed"]
    assert "CPUExecutionProvider" in report["ran_on"]


def test_check_exits_6_when_the_gate_fails_and_says_which(bundles):
    result = toolkit("check", bundles["moved"])
    assert result.exit_code == 6
    assert "below the gate's 40 dB" in result.stderr
    assert "drift FAILED" in result.stdout
    assert answer("check", bundles["moved"], code=6)["passed"] is False


def test_check_says_that_a_built_engine_did_not_run(bundles, monkeypatch):
    class Elsewhere:
        def session(self, folder, engine):
            raise UnsupportedError("the driver shows no device")

    monkeypatch.setattr(plugins, "runtime", lambda name: Elsewhere())
    result = toolkit("check", bundles["built"])
    assert result.exit_code == 0, result.output
    assert "has not run (no such device here)" in result.stdout
    assert "verified by their hash only" in result.stdout
    assert "It did not run now either: the driver shows no device." in result.stdout
    assert answer("check", bundles["built"])["engine_status"] == "built"


def test_check_measures_an_engine_that_was_built_elsewhere_and_runs_here(bundles):
    result = toolkit("check", bundles["built"])
    assert result.exit_code == 0, result.output
    assert "has run here now" in result.stdout
    assert "hash only" not in result.stdout
    on_cpu = toolkit("check", bundles["built"], "--on-cpu")
    assert "has not run" in on_cpu.stdout
    assert "did not run now" not in on_cpu.stdout


@pytest.mark.parametrize("name", ["engine.plan", "model.onnx.data", "test_data_set_0/input_0.pb"])
def test_check_refuses_a_changed_file(tmp_path, name):
    bundle = image_bundle(tmp_path / "bundle", status="built")
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).unlink()
    (bundle / name).write_bytes(content)
    result = toolkit("check", bundle)
    assert result.exit_code == 2
    assert name in result.stderr


def test_check_points_to_the_cpu_where_an_executed_engine_has_no_device_here(tmp_path, monkeypatch):
    class Elsewhere:
        def session(self, folder, engine):
            raise UnsupportedError("there is no such device", hint="Buy one.")

    bundle = image_bundle(tmp_path / "bundle", gate=GATE)
    monkeypatch.setattr(plugins, "runtime", lambda name: Elsewhere())
    result = toolkit("check", bundle)
    assert result.exit_code == 4
    assert "cannot run here: there is no such device" in result.stderr
    assert "--on-cpu" in result.stderr
    assert toolkit("check", bundle, "--on-cpu").exit_code == 0


def test_check_and_run_import_no_torch(bundles):
    for arguments in (["check", str(bundles["image"])], ["run", str(bundles["text"]), "a cat"]):
        code = (
            f"import sys\nfrom toolkit.cli import main\ntry:\n    main({arguments!r})\n"
            "except SystemExit as end:\n    print('END', end.code, *sys.modules, file=sys.stderr)"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
        status, *modules = done.stderr.partition("END")[2].split()
        assert status == "0", done.stderr
        assert "onnxruntime" in modules
        assert not {"torch", "transformers"} & set(modules)


def test_inspect_shows_bundle_and_graph(bundles):
    result = toolkit("inspect", bundles["built"])
    assert result.exit_code == 0, result.output
    for words in ("built by test builder 1: no such device here", "[batch, 1, 8, 8]", "MatMul 2", "kept as it is"):
        assert words in result.stdout
    found = answer("inspect", bundles["built"])
    assert found["bundle"]["engine"]["status"] == "built"
    assert found["graph"]["operators"]["ai.onnx"]["MatMul"] == 2


def test_inspect_shortens_a_long_reason_in_text_only_and_shows_provider_options(bundles, tmp_path):
    folder = shutil.copytree(bundles["built"], tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    reason = "; ".join(f"MatMul of layer {number}: range" for number in range(40))
    manifest["steps"][0]["reason"] = reason
    manifest["engine"]["details"]["provider_options"] = {"CUDAExecutionProvider": {"device_id": "1", "use_tf32": "0"}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    shown = toolkit("inspect", folder).stdout
    assert "layer 2: range; … and 37 more" in shown
    assert "layer 3: range" not in shown
    assert "options of CUDAExecutionProvider" in shown
    assert "device_id=1, use_tf32=0" in shown
    assert answer("inspect", folder)["bundle"]["steps"][0]["reason"] == reason


def test_inspect_takes_an_onnx_file(bundles):
    found = answer("inspect", bundles["text"] / "model.onnx")
    assert found["bundle"] is None
    assert [entry["name"] for entry in found["graph"]["inputs"]] == ["input_ids", "attention_mask"]


def test_inspect_refuses_what_is_neither(tmp_path):
    (tmp_path / "notes.onnx").write_text("not a model")
    for path in (tmp_path, tmp_path / "notes.onnx", tmp_path / "nowhere.onnx"):
        result = toolkit("inspect", path)
        assert result.exit_code == 2
        assert str(path) in result.stderr
