"""What a bundle carries to be built elsewhere or again: the lock, and a script that needs nothing of ours."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
from trt_graphs import Block, as_lowered, rtx

from runtimes._tensorrt import builder
from runtimes._tensorrt.builder import LOCK_FILE
from runtimes._tensorrt.devices import devices
from runtimes._tensorrt.lock import read_lock
from runtimes._tensorrt.lowering import lower_model
from runtimes._tensorrt.runtime import ARCHITECTURES, TensorRT
from runtimes.trt_rtx import RUNTIME as TRT_RTX
from toolkit.errors import StageError, UnsupportedError, UsageError
from toolkit.hashing import file_sha256, graph_sha256
from toolkit.types import Engine, TargetOptions

without_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed: it may build"
)
ALONE = TensorRT("trt", ("tensorrt",))
"""A runtime whose library is not installed."""


def built(folder: Path, runtime: TensorRT = TRT_RTX, *architectures: str) -> Engine:
    folder.mkdir(parents=True)
    model = Block(int8=True).model()
    lower_model(model)
    ir.save(model, folder / "model.onnx")
    lowered = as_lowered(folder / "model.onnx", scheme="int8")
    return runtime.build(lowered, TargetOptions(architectures=architectures))


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As on a machine without the toolkit: another working folder, and no path to our packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-P", str(folder / "build_engine.py"), *arguments],
        capture_output=True, text=True, check=False, env=environment, cwd=folder.parent,
    )  # fmt: skip


def edit_lock(folder: Path, **changes: Any) -> None:
    path = folder / LOCK_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 block compiled for two architectures; tests that change something copy it."""
    folder = tmp_path_factory.mktemp("locked") / "bundle"
    built(folder, TRT_RTX, "sm86", "sm89")
    return folder


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copied")


def test_the_script_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import runpy;"
        "runpy.run_path(sys.argv[1], run_name='other');"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    path = Path(str(importlib.import_module("runtimes._tensorrt.builder").__file__))
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@without_tensorrt
@rtx
def test_a_bundle_without_an_engine_is_built_by_its_script(bundle: Path, tmp_path: Path) -> None:
    engine = built(tmp_path / "graph-only", ALONE)
    assert engine.status == "graph-only"
    lock = read_lock(tmp_path / "graph-only")
    assert (lock.library, lock.version, lock.engines) == ("", "", {})
    assert lock.architectures == ARCHITECTURES
    assert lock.graph_sha256 == graph_sha256(tmp_path / "graph-only" / "model.onnx")
    folder = (tmp_path / "graph-only").rename(tmp_path / "on the device")
    done = run_script(folder, "--library", "tensorrt_rtx", "--arch", "sm89")
    assert done.returncode == 0, done.stderr
    assert "engine-sm89.plan" in done.stdout
    assert (folder / "engine-sm89.plan").read_bytes() == (bundle / "engine-sm89.plan").read_bytes()


@rtx
def test_the_script_builds_what_the_lock_asks_for_and_compares(copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.glob("*.plan")}
    done = run_script(copied, "--output", str(copied / "again"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same as in the lock") == 2
    assert {path.name: path.read_bytes() for path in (copied / "again").iterdir()} == before


@rtx
def test_one_architecture_that_fails_is_named_and_the_others_are_built(copied: Path) -> None:
    done = run_script(copied, "--arch", "sm42,sm89", "--output", str(copied / "again"))
    assert done.returncode == 4
    assert "does not compile for sm42, only for sm75" in done.stderr
    assert "no engine for sm42 (code 4)" in done.stderr
    assert [path.name for path in (copied / "again").iterdir()] == ["engine-sm89.plan"]


@rtx
@without_tensorrt
def test_the_exit_code_says_what_is_wrong(bundle: Path, copied: Path) -> None:
    missing = run_script(bundle, "--library", "tensorrt")
    assert (missing.returncode, "pip install 'tensorrt-cu13>=10.14'" in missing.stderr) == (3, True)
    (copied / "model.onnx").write_bytes(b"no graph")
    assert run_script(copied, "--arch", "sm89").returncode == 5
    (copied / LOCK_FILE).unlink()
    broken = run_script(copied)
    assert (broken.returncode, "is no recipe" in broken.stderr) == (2, True)


def test_tensorrt_compiles_for_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its engine would be called as another's."""
    tool = builder._Tool("tensorrt", SimpleNamespace(__version__="11.1.0.106"), None, None, ())
    monkeypatch.setattr(builder, "_device_architecture", lambda: "sm89")
    builder._require_offered(tool, "sm89")
    with pytest.raises(builder.BuildError, match=r"tensorrt 11\.1\.0\.106 does not compile for sm80, only for sm89"):
        builder._require_offered(tool, "sm80")


@pytest.mark.skipif(bool(devices()[0]), reason="a device is present")
def test_without_a_driver_there_is_no_architecture_to_compile_for() -> None:
    with pytest.raises(builder.BuildError, match="NVIDIA driver") as caught:
        builder._device_architecture()
    assert caught.value.code == 4


@rtx
class TestRebuild:
    def test_the_lock_holds_what_was_built(self, bundle: Path) -> None:
        lock = read_lock(bundle)
        assert (lock.library, lock.libraries) == ("tensorrt_rtx", ("tensorrt_rtx",))
        assert list(lock.engines) == ["sm86", "sm89"]
        for entry in lock.engines.values():
            assert entry.sha256 == file_sha256(bundle / entry.file)
            assert entry.bytes == (bundle / entry.file).stat().st_size

    def test_the_same_bytes_again(self, bundle: Path) -> None:
        before = sorted(bundle.iterdir())
        rebuilt = TRT_RTX.rebuild(bundle)
        assert [entry.same for entry in rebuilt.files] == [True, True]
        assert sorted(bundle.iterdir()) == before

    @pytest.mark.parametrize("change", [{"profiling_verbosity": "NONE"}, {"tf32": True}])
    def test_other_settings_are_other_bytes(self, change: dict[str, Any], copied: Path) -> None:
        lock = json.loads((copied / LOCK_FILE).read_text())
        assert not lock["config"]["tf32"]
        edit_lock(copied, config={**lock["config"], **change})
        assert [entry.same for entry in TRT_RTX.rebuild(copied).files] == [False, False]

    def test_a_graph_that_changed_is_refused(self, copied: Path) -> None:
        with (copied / "model.onnx").open("ab") as stream:
            stream.write(b"\0")
        with pytest.raises(UsageError, match="is not the graph"):
            TRT_RTX.rebuild(copied)

    def test_an_engine_that_the_lock_does_not_describe_is_refused(self, copied: Path) -> None:
        """A forged engine beside an honest lock: what is built again is the lock's, and would pass for the engine."""
        (copied / "engine-sm80.plan").write_bytes(b"an engine that nobody built")
        with pytest.raises(UsageError, match=r"not the lock of engine-sm80\.plan"):
            TRT_RTX.rebuild(copied)
        (copied / "engine-sm80.plan").replace(copied / "engine-sm89.plan")
        with pytest.raises(UsageError, match=r"not the lock of engine-sm89\.plan"):
            TRT_RTX.rebuild(copied)

    def test_another_version_is_named(self, copied: Path) -> None:
        edit_lock(copied, version="1.0.0.1")
        with pytest.raises(UnsupportedError, match=r"by tensorrt_rtx 1\.0\.0\.1, here is 1\.") as caught:
            TRT_RTX.rebuild(copied)
        assert caught.value.hint == "pip install 'tensorrt-rtx-cu13==1.0.0.1'"

    def test_limits_reach_the_rebuild(self, bundle: Path) -> None:
        with pytest.raises(StageError, match=r"sm86: .*more than the limit"):
            TRT_RTX.rebuild(bundle, TargetOptions(memory=1 << 20))


@rtx
@without_tensorrt
@pytest.mark.parametrize(("version", "code"), [("10.9.0.34", 4), ("10.14.1.48", 0), ("11.1.0.106", 0)])
def test_versions_of_tensorrt_before_its_attention_are_refused_by_name(
    version: str, code: int, bundle: Path, tmp_path: Path
) -> None:
    """TensorRT-RTX under TensorRT's name: what is tested is which versions are let in."""
    text = f"import tensorrt_rtx\n\n__version__ = '{version}'\n__getattr__ = tensorrt_rtx.__getattribute__\n"
    (tmp_path / "tensorrt.py").write_text(text)
    command = [sys.executable, bundle / "build_engine.py", "--library", "tensorrt", "--arch", "sm89"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "--output", tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert ("tensorrt 10.9.0.34 does not take Attention; 10.14 is the first" in done.stderr) == bool(code)
    assert (tmp_path / "engine-sm89.plan").is_file() != bool(code)


@without_tensorrt
def test_nothing_is_built_again_where_nothing_was_built(tmp_path: Path) -> None:
    built(tmp_path / "graph-only", ALONE)
    with pytest.raises(UnsupportedError, match="holds no engine") as caught:
        ALONE.rebuild(tmp_path / "graph-only")
    assert "build_engine.py" in caught.value.hint


@without_tensorrt
def test_a_library_that_is_not_here_is_named(tmp_path: Path) -> None:
    built(tmp_path / "b", ALONE)
    entry = {"file": "engine-sm90.plan", "sha256": "0" * 64, "bytes": 1}
    edit_lock(tmp_path / "b", library="tensorrt", version="11.1.0.1", engines={"sm90": entry})
    with pytest.raises(UnsupportedError, match="cannot be built again here: tensorrt is not installed"):
        ALONE.rebuild(tmp_path / "b")


@without_tensorrt
def test_a_lock_that_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path) -> None:
    built(tmp_path / "b", ALONE)
    for changes, said in (
        ({"schema_version": 2}, "has schema 2, this toolkit reads up to 1"),
        ({"graph": "../model.onnx"}, "not a valid engine lock: graph"),
        # It goes into a command that people copy.
        ({"graph": "model.onnx", "version": "1'; touch forged; '"}, "not a valid engine lock: version"),
        ({"graph": "model.onnx", "surprise": 1}, "not a valid engine lock"),
    ):
        edit_lock(tmp_path / "b", **{"schema_version": 1, **changes})
        with pytest.raises(UsageError, match=said):
            read_lock(tmp_path / "b")
    (tmp_path / "b" / LOCK_FILE).write_text("{")
    with pytest.raises(UsageError, match="cannot read"):
        read_lock(tmp_path / "b")
