"""Sessions: what they check, what they refuse, and that no ONNX Runtime error escapes untold."""

import numpy as np
import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from ort_graphs import Case, written

from runtimes import portable_session
from runtimes._onnxruntime import gpu
from runtimes._onnxruntime import session as session_module
from runtimes._onnxruntime.engine import graph_file, zero_inputs
from runtimes._onnxruntime.failures import MEANINGS, as_stage_error
from runtimes._onnxruntime.session import OrtSession
from runtimes.ort_cpu import KINDS, RUNTIME, SCHEMES
from toolkit.errors import StageError, UnsupportedError, UsageError

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
pair (float[batch, 3] a, int64[batch] b) => (float[batch, 3] y) { c = Cast<to=1>(b)
d = Unsqueeze(c, one)
y = Add(a, d) }"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([1]), "one"))
    target = tmp_path_factory.mktemp("pair") / "pair.onnx"
    onnx.save(proto, target)
    return target


def good():
    return {"a": np.ones((2, 3), np.float32), "b": np.asarray([1, 2])}


def test_runs_and_says_where(path):
    session = portable_session(path)
    assert session.run(good())["y"].tolist() == [[2, 2, 2], [3, 3, 3]]
    assert session.ran_on.startswith("onnxruntime ")
    assert session.ran_on.endswith(" CPUExecutionProvider")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, "missing: b"),
        ({"c": np.zeros(2)}, "unknown: c"),
        ({"a": np.ones((2, 3))}, "'a' is float64, not float32"),
        ({"a": np.ones(3, np.float32)}, r"'a' has shape \[3\]"),
        ({"a": np.ones((2, 4), np.float32)}, r"'a' has shape \[2, 4\]"),
        ({"b": np.asarray([1, 2, 3])}, "dimension 'batch' is 2 in 'a' and 3 in 'b'"),
    ],
)
def test_wrong_inputs_are_refused_with_what_is_allowed(path, change, message):
    feeds = {name: array for name, array in {**good(), **change}.items() if array is not None}
    with pytest.raises(UsageError, match=message) as caught:
        portable_session(path).run(feeds)
    assert "a float32 [batch, 3]" in caught.value.hint


def test_closed_session_says_so(path):
    session = portable_session(path)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(good())


def test_threads_must_be_positive(path):
    with pytest.raises(UsageError, match="0 threads"):
        OrtSession(path, threads=0)
    assert OrtSession(path, threads=1).run(good())["y"].shape == (2, 3)


def test_missing_and_damaged_files(path, tmp_path):
    with pytest.raises(StageError, match="no graph file"):
        portable_session(tmp_path / "none.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StageError, match="cannot open") as caught:
        portable_session(damaged)
    assert isinstance(caught.value.__cause__, state.InvalidProtobuf)
    assert "cut off" in caught.value.hint


def test_missing_weights_file(tmp_path):
    graph = written(Case(alibi=True, heads=128, kv_heads=128, layers=1).model(), tmp_path)
    lowered = RUNTIME.lower(graph, tmp_path / "lowered")
    data = lowered.path.with_name("model.onnx.data")
    assert data.exists()
    data.unlink()
    with pytest.raises(StageError, match="cannot open"):
        portable_session(lowered.path)


def test_an_unavailable_provider_is_refused_before_any_work(path):
    available = session_module.ort.get_available_providers()
    missing = next(name for name in session_module.ort.get_all_providers() if name not in available)
    with pytest.raises(UnsupportedError, match=f"has no {missing}") as caught:
        OrtSession(path, [(missing, {})])
    assert "CPUExecutionProvider" in caught.value.hint


def test_a_provider_that_fell_back_is_refused(path):
    """A CPU session stands for one whose GPU provider dropped out: its first provider is not what was asked."""
    real = session_module.ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with pytest.raises(StageError, match=r"asked for CUDAExecutionProvider, but .* fell back to CPUExecutionProvider"):
        session_module._refuse_other_provider(real, ["CUDAExecutionProvider"])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("provider", [gpu.CUDA, gpu.TENSORRT])
def test_a_gpu_provider_of_this_build_that_cannot_start_is_an_error(provider, strict, path, capsys):
    if provider not in session_module.ort.get_available_providers() or not gpu.blocker(provider):
        pytest.skip(f"needs onnxruntime-gpu where {provider} does not start")
    with pytest.raises(StageError, match=r"session: (cannot open|asked for)"):
        OrtSession(path, [(provider, {})], strict=strict)
    assert "retrying" not in capsys.readouterr().out


def test_heavy_nodes_on_another_provider_are_named(tmp_path):
    lowered = RUNTIME.lower(written(Case().model(), tmp_path), tmp_path / "lowered")
    options = session_module._options("CUDAExecutionProvider", 1)
    real = session_module.ort.InferenceSession(str(lowered.path), options, providers=["CPUExecutionProvider"])
    strays = list(session_module._heavy_nodes_elsewhere(real, ["CUDAExecutionProvider"]))
    assert len(strays) == 1
    assert strays[0].startswith("Attention ")
    assert not list(session_module._heavy_nodes_elsewhere(real, ["CUDAExecutionProvider", "CPUExecutionProvider"]))


def exception_classes() -> list[type[Exception]]:
    values = [getattr(state, name) for name in dir(state)]
    return [value for value in values if isinstance(value, type) and issubclass(value, Exception)]


def test_every_exception_of_onnxruntime_is_mapped():
    classes = exception_classes()
    assert len(classes) >= 10
    assert set(classes) <= set(MEANINGS)


@pytest.mark.parametrize("kind", exception_classes(), ids=lambda kind: kind.__name__)
def test_each_exception_becomes_a_stage_error(kind):
    with pytest.raises(StageError, match="run: tiny: boom") as caught, as_stage_error("run", "tiny"):
        raise kind("boom")
    assert isinstance(caught.value.__cause__, kind)
    assert caught.value.hint.endswith(".")


def test_build_means_it_ran(tmp_path):
    lowered = RUNTIME.lower(written(Case(mask="padding").model(), tmp_path), tmp_path / "lowered")
    engine = RUNTIME.build(lowered)
    assert engine.status == "executed"
    assert engine.builder.startswith("onnxruntime ")
    assert {str(file) for file in engine.files} == {file.name for file in lowered.path.parent.iterdir()}
    session = RUNTIME.session(lowered.path.parent, {"graph": engine.graph.path.name})
    assert session.run(zero_inputs(lowered.spec))["y0"].shape == (2, 2, 32)


def test_an_engine_that_does_not_run_is_not_called_executed(tmp_path):
    lowered = RUNTIME.lower(written(Case(mask="padding").model(), tmp_path), tmp_path / "lowered")
    lowered.path.write_bytes(lowered.path.read_bytes()[:-30])
    with pytest.raises(StageError):
        RUNTIME.build(lowered)


def test_damaged_engine_entry(tmp_path):
    with pytest.raises(UsageError, match="names no graph"):
        graph_file(tmp_path, {"files": ["model.plan"]})
    assert graph_file(tmp_path, {"graph": "model.onnx"}) == tmp_path / "model.onnx"


def test_readiness_and_what_it_takes():
    ready = RUNTIME.readiness()
    assert (ready.build, ready.run, ready.reason) == (True, True, "")
    assert "int8" in SCHEMES
    assert KINDS == ("encoder", "vision", "decoder", "module")
