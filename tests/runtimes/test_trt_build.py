"""Compiling with TensorRT-RTX: real engines without a GPU, crashes and limits as errors, honest status."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import psutil
import pytest
from trt_graphs import FEEDS, SPEC, Block, as_lowered, quantized, rtx

from runtimes import portable_session
from runtimes._tensorrt.builder import INSTALL
from runtimes._tensorrt.compile import compile_engines, probe
from runtimes._tensorrt.devices import devices
from runtimes._tensorrt.job import Job
from runtimes._tensorrt.lowering import lower_model
from runtimes._tensorrt.profiles import profiles_of
from runtimes._tensorrt.runtime import ARCHITECTURES, TensorRT
from runtimes.trt import RUNTIME as TRT
from runtimes.trt_rtx import RUNTIME as TRT_RTX
from toolkit.errors import StageError, UnsupportedError
from toolkit.supervision import resident, stop
from toolkit.types import Engine, ModelSpec, TargetOptions, TensorSpec

HAS_TENSORRT = importlib.util.find_spec("tensorrt") is not None
DEVICES, NO_DEVICE = devices()


def job(path: Path, architectures: tuple[str, ...] = ("sm89",)) -> Job:
    return Job("tensorrt_rtx", str(path), str(path.parent), architectures, profiles_of(SPEC))


def engines(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "engine" in path.name)


@pytest.fixture
def half_block(tmp_path: Path) -> Path:
    """The lowered int8 block: its attention is in half precision."""
    model = Block(int8=True).model()
    lower_model(model)
    path = tmp_path / "lowered" / "model.onnx"
    path.parent.mkdir()
    ir.save(model, path)
    return path


@pytest.fixture
def crashing(tmp_path: Path) -> Path:
    """What the rule for queries that are keys exists for: written by hand, past the lowering."""
    text = (
        '<ir_version: 10, opset_import: ["": 23]> g (float16[2, 2, 8, 32] x) => (float16[2, 2, 8, 32] y)'
        " { y = Attention(x, x, x) }"
    )
    path = tmp_path / "crash" / "model.onnx"
    path.parent.mkdir()
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@rtx
def test_one_engine_an_architecture_with_fused_attention_and_int8(half_block: Path) -> None:
    built = compile_engines(job(half_block, ("sm80", "sm120")))
    assert [engine.architecture for engine in built] == ["sm80", "sm120"]
    for engine in built:
        assert (half_block.parent / engine.file).stat().st_size == engine.bytes > 0
        assert (engine.attentions, engine.fused_attentions) == (1, 1)
        assert engine.int8_products
    assert engines(half_block.parent) == ["engine-sm120.plan", "engine-sm80.plan"]


@rtx
def test_same_graph_same_bytes_in_two_processes(half_block: Path, tmp_path: Path) -> None:
    """In another folder too, under another name and after another architecture."""
    elsewhere = tmp_path / "a much longer name of a folder" / "other.onnx"
    elsewhere.parent.mkdir()
    shutil.copyfile(half_block, elsewhere)
    (first,) = compile_engines(job(half_block))
    *_, second = compile_engines(job(elsewhere, ("sm80", "sm89")))
    bytes_of = [(path.parent / "engine-sm89.plan").read_bytes() for path in (half_block, elsewhere)]
    assert bytes_of[0] == bytes_of[1]
    assert first.sha256 == second.sha256 == hashlib.sha256(bytes_of[0]).hexdigest()


@rtx
def test_a_relative_path_is_the_callers(half_block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(half_block.parent)
    (built,) = compile_engines(Job("tensorrt_rtx", "model.onnx", ".", ("sm89",), profiles_of(SPEC)))
    assert engines(half_block.parent) == [built.file]


@rtx
def test_a_crash_of_the_builder_is_an_error_and_leaves_nothing(crashing: Path) -> None:
    plain = Job("tensorrt_rtx", str(crashing), str(crashing.parent), ("sm89",), {})
    with pytest.raises(StageError, match="crashed with SIG") as caught:
        compile_engines(plain)
    assert "compiling for sm89" in str(caught.value)
    assert engines(crashing.parent) == []


@rtx
def test_the_rule_for_queries_that_are_keys_keeps_the_builder_alive(tmp_path: Path) -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 23, "toolkit": 1]> g (float16[2, 2, 8, 32] x) => (float16[2, 2, 8, 32] y)'
        " { y = toolkit.FusedAttention <scale = 0.2, is_causal = 0, softcap = 0.0, left_window_size = -1,"
        " right_window_size = -1> (x, x, x) }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    lower_model(model)
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    (built,) = compile_engines(Job("tensorrt_rtx", str(path), str(tmp_path), ("sm89",), {}))
    assert built.bytes > 0


@rtx
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (TargetOptions(seconds=0.0), "longer than the limit of 0 s"),
        (TargetOptions(memory=1 << 20), "more than the limit of 1 MiB"),
    ],
)
def test_limits_stop_the_builder(options: TargetOptions, said: str, half_block: Path) -> None:
    with pytest.raises(StageError, match=f"sm80: .*{said}") as caught:
        TRT_RTX.build(as_lowered(half_block, scheme="int8"), options)
    assert ("--build-timeout 60" if options.memory is None else "--build-memory") in caught.value.hint
    assert engines(half_block.parent) == []


@rtx
def test_what_the_parser_says_reaches_the_user(tmp_path: Path) -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]> g (float[2] x) => (float[2] y)'
        " { y = com.microsoft.BiasGelu(x, x) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(StageError, match="TensorRT refused the graph") as caught:
        compile_engines(Job("tensorrt_rtx", str(tmp_path / "model.onnx"), str(tmp_path), ("sm89",), {}))
    assert "BiasGelu" in str(caught.value)


@rtx
def test_an_architecture_that_is_not_offered(half_block: Path) -> None:
    with pytest.raises(StageError, match="does not compile for sm12, only for sm75, sm80") as caught:
        compile_engines(job(half_block, ("sm89", "sm12")))
    assert str(caught.value).startswith("build: sm12: TensorRT's builder did not start")
    assert engines(half_block.parent) == []


@rtx
def test_options_are_refused_before_any_work_with_what_is_offered() -> None:
    with pytest.raises(UnsupportedError, match=r"tensorrt_rtx .* does not compile for sm42") as caught:
        TRT.check_options(TargetOptions(architectures=("sm89", "sm42")), "fp16")
    assert "sm75, sm80" in caught.value.hint
    TRT.check_options(TargetOptions(architectures=("sm75", "sm121")), "fp16")


@rtx
def test_turing_is_an_engine_of_its_own(half_block: Path) -> None:
    assert "sm75" not in ARCHITECTURES
    (built,) = compile_engines(job(half_block, ("sm75",)))
    assert built.file == "engine-sm75.plan"
    assert built.bytes > 0


@rtx
@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["fp32", "int8"])
@pytest.mark.parametrize("runtime", [TRT, TRT_RTX], ids=["trt", "trt-rtx"])
@pytest.mark.skipif(bool(DEVICES), reason="a device is present: the engine is executed, not only built")
def test_lower_and_build_from_end_to_end(runtime: TensorRT, scheme: str, tmp_path: Path) -> None:
    engine = runtime.build(runtime.lower(quantized(tmp_path / "q", scheme), tmp_path / "lowered"))
    assert engine.status == "built"
    carried = ["build_engine.py", "engine.lock.json"]
    assert [file.name for file in engine.files] == [*(f"engine-{name}.plan" for name in ARCHITECTURES), *carried]
    outcome = "2 of 2 GEMMs int8, 1 of 1 attentions fused" if scheme == "int8" else "0 of 1 attentions fused"
    assert outcome in engine.said
    assert all((engine.graph.path.parent / file).is_file() for file in engine.files)
    assert "not run here" in engine.reason
    assert engine.builder.startswith("tensorrt_rtx 1.")
    assert ("not prove that TensorRT's" in engine.reason) == (runtime is TRT)
    outputs = portable_session(engine.graph.path).run(FEEDS)
    assert np.isfinite(outputs["y"]).all()


@rtx
def test_an_int8_engine_without_int8_kernels_is_an_error(tmp_path: Path) -> None:
    model = Block(int8=False).model()
    lower_model(model)
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    with pytest.raises(StageError, match="no matrix product runs in int8"):
        TRT_RTX.build(as_lowered(path, scheme="int8"))


@rtx
def test_probe_starts_the_library() -> None:
    found = probe("tensorrt_rtx")
    version = found.version
    assert version[0].isdigit()
    assert not found.reason
    assert {"sm75", *ARCHITECTURES} <= set(found.offered)
    ready = TRT_RTX.readiness()
    assert ready.build
    assert ready.run == bool(DEVICES)
    assert version in ready.version


def test_probe_says_why_a_library_does_not_start() -> None:
    found = probe("no_such_tensorrt")
    assert not found.version
    assert found.reason.startswith("no_such_tensorrt is not installed")


def test_memory_is_counted_with_that_of_children() -> None:
    """The children of a process are part of what it uses, and end with it."""
    child = "import sys, time; block = bytearray(150 << 20); print('ready', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
        assert resident(process.pid) > 150 << 20
        grandchild = psutil.Process(process.pid).children()[0]
    finally:
        stop(process)
    assert not grandchild.is_running()


@pytest.mark.skipif(HAS_TENSORRT, reason="tensorrt is installed: it builds")
def test_without_a_library_only_the_graph_ships(tmp_path: Path) -> None:
    alone = TensorRT("trt", ("tensorrt",))
    ir.save(Block(int8=False).model(), tmp_path / "model.onnx")
    engine = alone.build(as_lowered(tmp_path / "model.onnx"))
    assert (engine.status, engine.files) == ("graph-only", (Path("build_engine.py"), Path("engine.lock.json")))
    assert all((tmp_path / file).is_file() for file in engine.files)
    assert INSTALL["tensorrt"] in engine.reason
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    assert f"'{extras['tensorrt'][0]}'" in INSTALL["tensorrt"]
    assert f"'{extras['rtx'][0]}'" in INSTALL["tensorrt_rtx"]
    assert engine.details["command"] == (
        "trtexec --onnx=model.onnx --saveEngine=engine.plan --skipInference --stronglyTyped"
        " '--decomposableAttentions=*' --noTF32 --profilingVerbosity=detailed --minShapes=x:1x1x32,mask:1x1x1x1"
        " --optShapes=x:2x16x32,mask:2x1x1x16 --maxShapes=x:4x32x32,mask:4x1x1x32"
    )
    assert not alone.readiness().build
    with pytest.raises(UnsupportedError, match="only its graph"):
        alone.session(tmp_path, {"files": [str(file) for file in engine.files], "reason": engine.reason})


@pytest.mark.skipif(bool(DEVICES), reason="a device is present")
@pytest.mark.parametrize("runtime", [TRT, TRT_RTX], ids=["trt", "trt-rtx"])
def test_a_session_without_a_device_says_why(runtime: TensorRT, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU") as caught:
        runtime.session(tmp_path, {"files": ["engine-sm89.plan"], "details": {"library": "tensorrt_rtx"}})
    assert NO_DEVICE in str(caught.value)


def test_a_dimension_without_a_range_is_an_error() -> None:
    spec = ModelSpec("m", "f", "module", "raw", "s", "A", (TensorSpec("x", "float32", ("frames", 3)),), (), {})
    with pytest.raises(StageError, match="no range for: frames"):
        profiles_of(spec)


def test_importing_the_runtimes_imports_no_tensorrt() -> None:
    code = (
        "import sys, runtimes.trt, runtimes.trt_rtx;"
        "sys.exit(bool({'tensorrt', 'tensorrt_rtx', 'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.requires_gpu
@rtx
@pytest.mark.skipif(not DEVICES, reason=NO_DEVICE or "no device")
@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_the_engine_runs_as_its_graph_does(scheme: str, tmp_path: Path) -> None:
    engine: Engine = TRT_RTX.build(TRT_RTX.lower(quantized(tmp_path / "q", scheme), tmp_path / "lowered"))
    assert engine.status == "executed"
    entry = {"files": [str(file) for file in engine.files], "details": engine.details}
    session = TRT_RTX.session(engine.graph.path.parent, entry)
    expected = portable_session(engine.graph.path).run(FEEDS)["y"]
    got = session.run(FEEDS)["y"]
    assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)
    session.close()
