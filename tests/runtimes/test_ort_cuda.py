"""ONNX Runtime on CUDA: what can be told without a GPU, and the run where there is one."""

from dataclasses import fields
from importlib import metadata
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from ort_graphs import Case, written

from runtimes import portable_session
from runtimes._onnxruntime import gpu
from runtimes.ort_cuda import RUNTIME, SCHEME_KINDS, SCHEMES, CudaOptions, OrtCuda
from runtimes.ort_cuda.bfloat16 import _KERNELS, _SINCE
from toolkit.errors import UnsupportedError, UsageError
from toolkit.target import all_targets
from toolkit.types import TargetOptions

BLOCKER = gpu.blocker(gpu.CUDA)
without_gpu = pytest.mark.skipif(not BLOCKER, reason="there is a usable GPU here")


def lowered(folder, **case):
    return RUNTIME.lower(written(Case(**case).model(), folder), folder / "lowered")


@without_gpu
def test_readiness_gives_the_reason():
    ready = RUNTIME.readiness()
    assert not ready.run
    assert ready.reason == BLOCKER


@without_gpu
def test_without_a_gpu_the_engine_is_graph_only_and_says_why_and_with_which_options(tmp_path):
    engine = OrtCuda(CudaOptions(device_id=1)).build(lowered(tmp_path, mask="padding"))
    assert (engine.status, engine.reason) == ("graph-only", BLOCKER)
    assert "model.onnx" in map(str, engine.files)
    options = engine.details["provider_options"]["CUDAExecutionProvider"]
    assert (options["device_id"], options["use_tf32"]) == ("1", "0")


@without_gpu
def test_without_a_gpu_a_session_is_refused_not_moved_to_the_cpu(tmp_path):
    graph = lowered(tmp_path)
    with pytest.raises(UnsupportedError, match="ort-cuda cannot run here") as caught:
        RUNTIME.session(graph.path.parent, {"graph": "model.onnx"})
    assert BLOCKER in str(caught.value)


def test_options_in_a_manifest_are_checked_before_anything_else(tmp_path):
    entry = {"graph": "model.onnx", "details": {"provider_options": {"CUDAExecutionProvider": {"use_tf23": "1"}}}}
    with pytest.raises(UsageError, match="has no option 'use_tf23'") as caught:
        RUNTIME.session(tmp_path, entry)
    assert caught.value.hint.startswith("Did you mean use_tf32?")


def test_both_packages_installed_is_told_with_the_commands(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}[name])
    reason = gpu.both_builds_installed()
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1" in reason
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'" in reason


def test_one_package_is_fine():
    installed = {name for name in ("onnxruntime", "onnxruntime-gpu") if gpu._installed(name)}
    assert bool(gpu.both_builds_installed()) == (len(installed) == 2)


def test_options_are_what_onnxruntime_takes():
    assert CudaOptions().as_strings() == {
        "device_id": "0",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "prefer_nhwc": "0",
        "fuse_conv_bias": "0",
    }
    chosen = CudaOptions(device_id=1, gpu_mem_limit=1 << 30)
    assert chosen.as_strings()["gpu_mem_limit"] == "1073741824"
    assert CudaOptions.from_mapping(chosen.as_strings()) == chosen


@pytest.mark.parametrize(
    ("name", "value", "says", "hint"),
    [
        ("device_id", "-1", "'-1' is no device_id", "a whole number from 0"),
        ("device_id", True, "'True' is no device_id", "a whole number from 0"),
        ("gpu_mem_limit", "1e9", "'1e9' is no gpu_mem_limit", "a whole number from 1"),
        ("use_tf32", "maybe", "'maybe' is no use_tf32", "Allowed: 0, 1."),
        ("cudnn_conv_algo_search", "FAST", "'FAST' is no", "Allowed: EXHAUSTIVE, HEURISTIC, DEFAULT."),
        ("device", "0", "has no option 'device'", "Did you mean device_id"),
        ("enable_cuda_graph", "1", "enable_cuda_graph is not offered", "replays the addresses"),
    ],
)
def test_an_option_that_does_not_do_is_refused_with_what_does(name, value, says, hint):
    with pytest.raises(UsageError, match=says) as caught:
        CudaOptions.from_mapping({name: value})
    assert hint in caught.value.hint


@pytest.mark.parametrize("value", ["1", 1, "true", True])
def test_a_boolean_is_read_from_text_or_value(value):
    assert CudaOptions.from_mapping({"prefer_nhwc": value}).prefer_nhwc is True


def test_every_option_is_one_that_the_installed_provider_knows():
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.is_file():
        pytest.skip("this onnxruntime has no CUDA provider: pip install onnxruntime-gpu in its place")
    names = library.read_bytes()
    missing = [each.name for each in fields(CudaOptions) if f"\0{each.name}\0".encode() not in names]
    assert not missing


def test_int8_is_for_language_models_only():
    assert SCHEMES == ("fp32", "fp16", "bf16", "int8", "int4")
    assert SCHEME_KINDS == {"int8": ("decoder",)}
    taken = {kind: {str(target) for target in all_targets(kind)} for kind in ("decoder", "vision")}
    assert "ort-cuda-int8" in taken["decoder"]
    assert "ort-cuda-int8" not in taken["vision"]


def test_int8_weights_in_blocks_stay_8_bits_and_meet_activations_as_they_are(tmp_path):
    """What a language model's int8 Linear looks like in the canonical graph."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (64, 8), np.int8)
    scales = rng.uniform(0.01, 0.02, (2, 8)).astype(np.float32)
    text = """<ir_version: 10, opset_import: ["" : 23]> tiny (float[batch, 64] x) => (float[batch, 8] y)
    <int8[64, 8] w, float[2, 8] s> { d = DequantizeLinear<axis = 0, block_size = 32>(w, s)\n y = MatMul(x, d) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend([numpy_helper.from_array(weight, "w"), numpy_helper.from_array(scales, "s")])
    graph = written(ir.from_proto(proto), tmp_path, "int8")
    made = RUNTIME.lower(graph, tmp_path / "lowered")
    (product,) = ir.load(made.path).graph
    assert (product.op_type, product.attributes.get_int("bits")) == ("MatMulNBits", 8)
    assert product.attributes.get_int("accuracy_level") == 0
    feeds = {"x": rng.standard_normal((3, 64)).astype(np.float32)}
    expected = feeds["x"] @ (weight * scales.repeat(32, axis=0))
    np.testing.assert_allclose(portable_session(made.path).run(feeds)["y"], expected, rtol=0, atol=1e-4)


@without_gpu
def test_options_given_at_export_are_recorded(tmp_path):
    options = TargetOptions(provider={"device_id": "1", "use_tf32": "true"})
    RUNTIME.check_options(options, "fp32")
    recorded = RUNTIME.build(lowered(tmp_path), options).details["provider_options"]["CUDAExecutionProvider"]
    assert CudaOptions.from_mapping(recorded) == CudaOptions(device_id=1, use_tf32=True)


def in_bfloat16(node, folder, opset=23):
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]> tiny (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
    <bfloat16[1, 4, 8, 8] h, bfloat16[1, 4, 8, 8] z, bfloat16[4, 4, 1, 1] w>
    {{ h = Cast<to = 16>(x)\n z = {node}\n y = Cast<to = 1>(z) }}"""
    proto = onnx.parser.parse_model(text)
    weight = ir.tensor(np.ones((4, 4, 1, 1), ml_dtypes.bfloat16), name="w")
    proto.graph.initializer.append(ir.serde.serialize_tensor(weight))
    return RUNTIME.lower(written(ir.from_proto(proto), folder, "bf16"), folder / "lowered")


@pytest.mark.parametrize(
    ("node", "opset", "says", "hint"),
    [
        ("Conv(h, w)", 21, "no bfloat16 kernel at opset 21 for Conv", "--opset 22 or newer"),
        ("Reciprocal(h)", 23, "no bfloat16 kernel at opset 23 for Reciprocal", "ort-cuda-fp16"),
    ],
)
def test_bfloat16_without_a_kernel_is_refused_before_it_is_written(node, opset, says, hint, tmp_path):
    with pytest.raises(UnsupportedError, match=says) as caught:
        in_bfloat16(node, tmp_path, opset)
    assert hint in caught.value.hint
    assert not (tmp_path / "lowered").exists()


@pytest.mark.parametrize("node", ["Conv(h, w)", "Attention(h, h, h)", "Softmax(h)"])
def test_bfloat16_with_a_kernel_is_written_and_runs_emulated(node, tmp_path):
    made = in_bfloat16(node, tmp_path)
    answer = portable_session(made.path).run({"x": np.ones((1, 4, 8, 8), np.float32)})["y"]
    expected = {"C": 4.0, "A": 1.0, "S": 0.125}[node[0]]
    np.testing.assert_allclose(answer, expected, rtol=2**-8)


def test_every_operator_in_bfloat16_is_one_that_onnx_lets_be_so():
    for name in _KERNELS | set(_SINCE):
        schema = onnx.defs.get_schema(name, max_inclusive_version=25)
        allowed = {kind for each in schema.type_constraints for kind in each.allowed_type_strs}
        assert "tensor(bfloat16)" in allowed, name


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
