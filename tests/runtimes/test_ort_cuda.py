"""ONNX Runtime on CUDA: what can be told without a GPU, and the run where there is one."""

from importlib import metadata

import numpy as np
import pytest
from ort_graphs import Case, written

from runtimes import portable_session
from runtimes.ort_cuda import RUNTIME, SCHEMES, CudaOptions, device
from toolkit.errors import UnsupportedError

BLOCKER = device.cuda_blocker()
without_gpu = pytest.mark.skipif(not BLOCKER, reason="there is a usable GPU here")


def lowered(folder, **case):
    return RUNTIME.lower(written(Case(**case).model(), folder), folder / "lowered")


@without_gpu
def test_readiness_gives_the_reason():
    ready = RUNTIME.readiness()
    assert not ready.run
    assert ready.reason == BLOCKER


@without_gpu
def test_without_a_gpu_the_engine_is_graph_only_and_says_why(tmp_path):
    engine = RUNTIME.build(lowered(tmp_path, mask="padding"))
    assert (engine.status, engine.reason) == ("graph-only", BLOCKER)
    assert "model.onnx" in map(str, engine.files)


@without_gpu
def test_without_a_gpu_a_session_is_refused_not_moved_to_the_cpu(tmp_path):
    graph = lowered(tmp_path)
    with pytest.raises(UnsupportedError, match="ort-cuda cannot run here") as caught:
        RUNTIME.session(graph.path.parent, {"graph": "model.onnx"})
    assert BLOCKER in str(caught.value)


def test_both_packages_installed_is_told_with_the_commands(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}[name])
    reason = device.both_builds_installed()
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1" in reason
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in reason


def test_one_package_is_fine():
    installed = {name for name in ("onnxruntime", "onnxruntime-gpu") if device._installed(name)}
    assert bool(device.both_builds_installed()) == (len(installed) == 2)


def test_devices_are_counted_or_the_reason_is_given():
    found = device.cuda_devices()
    assert (isinstance(found, int) and found > 0) or "NVIDIA driver" in found


def test_options_are_what_onnxruntime_takes():
    assert CudaOptions().as_strings() == {
        "device_id": "0",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    assert CudaOptions(device_id=1, gpu_mem_limit=1 << 30).as_strings()["gpu_mem_limit"] == "1073741824"


def test_int8_is_not_claimed_but_int4_weights_are():
    assert SCHEMES == ("fp32", "fp16", "int4")


@pytest.mark.requires_gpu
@pytest.mark.skipif(bool(BLOCKER), reason=BLOCKER)
@pytest.mark.parametrize(
    "case", [Case(mask="padding"), Case(left=1, causal=1), Case(dtype="float16", mask="padding")], ids=str
)
def test_on_the_gpu(case, tmp_path):
    graph = written(case.model(), tmp_path)
    engine = RUNTIME.build(RUNTIME.lower(graph, tmp_path / "lowered"))
    assert engine.status == "executed"
    session = RUNTIME.session(tmp_path / "lowered", {"graph": "model.onnx"})
    assert session.ran_on.endswith("CUDAExecutionProvider")
    expected, actual = portable_session(graph.path).run(case.feeds()), session.run(case.feeds())
    np.testing.assert_allclose(actual["y0"], expected["y0"], rtol=0, atol=1e-4 if case.dtype == "float" else 5e-3)
