"""ONNX Runtime's TensorRT provider: its form of a graph, its options, and the run where there is a GPU."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from ort_graphs import Case, spec_of, written
from trt_graphs import FEEDS, SPEC, quantized

from runtimes import portable_session
from runtimes._onnxruntime import gpu
from runtimes._tensorrt.lowering import lower_model
from runtimes._tensorrt.preflight import objections
from runtimes.ort_trt import KINDS, RUNTIME, SCHEMES, CudaOptions, OrtTrt, TensorrtOptions
from runtimes.ort_trt.options import for_graph, with_cache, without_paths
from runtimes.ort_trt.precision import flags_of
from toolkit import plugins
from toolkit.errors import UnsupportedError, UsageError
from toolkit.target import parse_target
from toolkit.types import Calibration, Step, TargetOptions

BLOCKER = gpu.blocker(gpu.TENSORRT)
without_gpu = pytest.mark.skipif(not BLOCKER, reason="there is a usable GPU and TensorRT 10 here")

CASES = [
    Case(),
    Case(mask="padding"),
    Case(mask="float"),
    Case(mask="empty-row"),
    Case(causal=1, mask="padding"),
    Case(left=1, right=1),
    Case(kv_heads=2, causal=1),
    Case(softcap=2.0),
    Case(alibi=True),
    Case(value_size=16, flat=False),
    Case(keys=7),
    Case(opset=22, mask="padding"),
]


def lower(graph, folder):
    return RUNTIME.lower(graph, folder / "lowered")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_products_of_opset_22_with_the_same_numbers(case, tmp_path):
    graph = written(case.model(), tmp_path)
    made = lower(graph, tmp_path)
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 22)]
    operators = {node.op_type for node in model.graph.node}
    assert {"MatMul", "Softmax"} <= operators
    assert "Attention" not in operators
    expected = portable_session(graph.path).run(case.feeds())
    np.testing.assert_allclose(portable_session(made.path).run(case.feeds())["y0"], expected["y0"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_a_block_lowers_with_its_numbers_kept(scheme, tmp_path):
    graph = quantized(tmp_path, scheme)
    made = lower(graph, tmp_path)
    expected, actual = (portable_session(path).run(FEEDS)["y"] for path in (graph.path, made.path))
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < 1e-6


def test_int8_is_symmetric_q_dq_with_nothing_in_half_precision(tmp_path):
    model = ir.load(lower(quantized(tmp_path, "int8"), tmp_path).path)
    pairs = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert pairs
    assert all(node.inputs[2].dtype == ir.DataType.INT8 for node in pairs)
    assert all(not node.inputs[2].const_value.numpy().any() for node in pairs)
    assert ir.DataType.FLOAT16 not in {
        value.dtype for node in model.graph for value in (*node.inputs, *node.outputs) if value
    }
    assert not list(objections(model))


def test_the_log_says_what_became_of_attention_and_of_the_opset(tmp_path):
    steps = {step.what: step for step in lower(quantized(tmp_path, "fp32"), tmp_path).steps}
    assert steps["attention as MatMul and Softmax"].count == 1
    assert "10.14" in steps["attention as MatMul and Softmax"].reason
    assert steps["opset 23 -> 22"].count == 1


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ("y = RMSNormalization(x, scale)", "RMSNormalization '.*' is not in opset 22"),
        ('y = Cast<to = 1, round_mode = "up">(x)', "has round_mode, which opset 22 does not know"),
    ],
)
def test_a_node_that_opset_22_lacks_is_named(node, says):
    text = (
        f'<ir_version: 11, opset_import: ["" : 24]>\ng (float[2, 4] x, float[4] scale) => (float[2, 4] y)\n{{{node}}}'
    )
    with pytest.raises(UnsupportedError, match=says) as caught:
        lower_model(ir.from_proto(onnx.parser.parse_model(text)), tensorrt10=True)
    assert "--opset 22" in caught.value.hint


def test_architectures_of_another_target_do_not_concern_it(tmp_path):
    """One export may have the targets trt-fp16 and ort-trt-bf16, with --arch sm75 for the first."""
    graph = quantized(tmp_path, "fp32")
    model = ir.load(graph.path)
    plugins.scheme("bf16").apply(model, SPEC, None, {})
    ir.save(model, graph.path)
    options = TargetOptions(architectures=("sm75",))
    made = RUNTIME.lower(replace(graph, scheme="bf16"), tmp_path / "lowered", options=options)
    values = (value for node in ir.load(made.path).graph for value in node.outputs)
    assert ir.DataType.BFLOAT16 in {value.dtype for value in values}


def test_what_it_takes():
    assert SCHEMES == ("fp32", "fp16", "bf16", "int8")
    assert KINDS == ("encoder", "vision", "module")
    assert str(parse_target("ort-trt-fp16")) == "ort-trt-fp16"
    with pytest.raises(UnsupportedError, match="does not take scheme 'int4'"):
        parse_target("ort-trt-int4")
    with pytest.raises(UnsupportedError, match="no language models"):
        RUNTIME.decoder(Path(), {}, None, limit=1, rows=1)


def test_the_profile_is_that_of_the_dimensions():
    made = for_graph(TensorrtOptions(), SPEC)
    assert made.trt_profile_min_shapes == "x:1x1x32,mask:1x1x1x1"
    assert made.trt_profile_opt_shapes == "x:2x16x32,mask:2x1x1x16"
    assert made.trt_profile_max_shapes == "x:4x32x32,mask:4x1x1x32"
    fixed = replace(SPEC, inputs=(replace(SPEC.inputs[0], shape=(2, 16, 32)),))
    assert for_graph(TensorrtOptions(), fixed) == TensorrtOptions()
    given = TensorrtOptions(trt_profile_min_shapes="x:1x1x32")
    assert for_graph(given, SPEC) == given


def test_each_graph_has_a_cache_of_its_own_where_none_is_given(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, other = (with_cache(TensorrtOptions(), letter * 64) for letter in "ab")
    assert one.trt_engine_cache_path == str(tmp_path / "toolkit" / "ort-trt" / ("a" * 16))
    assert one.trt_engine_cache_path != other.trt_engine_cache_path
    given = with_cache(TensorrtOptions(trt_engine_cache_path="/mine", trt_timing_cache_enable=False), "a" * 64)
    assert (given.trt_engine_cache_path, given.trt_timing_cache_path) == ("/mine", None)


def test_where_caches_lie_is_no_business_of_a_bundle(tmp_path):
    """A stranger's manifest must not choose where engines are read from and written to."""
    elsewhere = TargetOptions(provider={"trt_engine_cache_path": "/elsewhere", "trt_builder_optimization_level": "4"})
    engine = RUNTIME.build(lower(quantized(tmp_path, "fp32"), tmp_path), elsewhere)
    recorded = engine.details["provider_options"]["TensorrtExecutionProvider"]
    assert recorded["trt_builder_optimization_level"] == "4"
    assert not [name for name in recorded if name.endswith("_path")]
    assert without_paths(TensorrtOptions(trt_timing_cache_path="/elsewhere")).trt_timing_cache_path is None


@pytest.mark.parametrize(
    ("name", "value", "says", "hint"),
    [
        ("trt_fp16_enable", "1", "trt_fp16_enable is not offered", "The target says which precisions"),
        ("trt_int8_enable", True, "trt_int8_enable is not offered", "The target says which precisions"),
        ("trt_build_heuristics_enable", "1", "is not offered", "deprecated since TensorRT 8.6"),
        ("trt_builder_optimization_level", 6, "'6' is no trt_builder_optimization_level", "Allowed: 0 to 5."),
        ("trt_max_workspace_size", "4GB", "'4GB' is no trt_max_workspace_size", "a whole number from 1"),
        ("trt_engine_cache_path", "", "'' is no trt_engine_cache_path", "a text that is not empty"),
        ("trt_engine_cash_path", "x", "has no option 'trt_engine_cash_path'", "Did you mean trt_engine_cache_path"),
    ],
)
def test_an_option_that_does_not_do_is_refused_with_what_does(name, value, says, hint):
    with pytest.raises(UsageError, match=says) as caught:
        TensorrtOptions.from_mapping({name: value})
    assert hint in caught.value.hint


def test_booleans_are_written_as_the_provider_reads_them():
    """It refuses 0 and 1, which the CUDA provider takes."""
    chosen = TensorrtOptions(trt_engine_hw_compatible=True)
    assert chosen.as_strings()["trt_engine_hw_compatible"] == "True"
    assert TensorrtOptions().as_strings()["trt_engine_hw_compatible"] == "False"
    assert TensorrtOptions.from_mapping(chosen.as_strings()) == chosen


def test_no_option_turns_precision_over_to_the_builder():
    """The network is weakly typed: with a flag that the graph does not need, TensorRT would use its precision."""
    assert not {"trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"} & TensorrtOptions().as_strings().keys()
    assert not flags_of("fp32")
    assert flags_of("int8") == {"trt_int8_enable": "True"}
    assert flags_of("fp16")["trt_fp16_enable"] == "True"
    assert flags_of("bf16")["trt_bf16_enable"] == "True"
    assert all("trt_fp16_enable" not in flags_of(scheme) for scheme in set(SCHEMES) - {"fp16"})


def test_an_engine_entry_without_its_scheme_is_damaged(tmp_path):
    with pytest.raises(UsageError, match="names no scheme of ort-trt"):
        RUNTIME.session(tmp_path, {"graph": "model.onnx"})


@pytest.mark.parametrize(("weight", "refused"), [(1.0, ""), (3e4, "range"), (1e5, "constant")], ids=str)
def test_half_precision_with_nodes_that_must_stay_in_fp32_is_refused(weight, refused, tmp_path):
    """What the scheme fp16 itself says of a product that passes 65504, or whose weights do."""
    text = f"""<ir_version: 10, opset_import: ["" : 23]> tiny (float[batch, 2] x) => (float[batch, 2] y)
    <float[2, 2] w = {{{weight}, 1.0, 1.0, {weight}}}> {{ y = MatMul(x, w) }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    data = Calibration(
        lambda: iter([{"x": np.full((2, 2), 4.0 if refused == "range" else 0.1, np.float32)}]), 1, "here"
    )
    steps = plugins.scheme("fp16").apply(model, spec_of(model), data, {})
    graph = replace(written(model, tmp_path, "fp16"), steps=tuple(steps))
    if not refused:
        assert lower(graph, tmp_path).scheme == "fp16"
        return
    with pytest.raises(UnsupportedError, match=r"1 node must stay in fp32 \(MatMul .*weakly typed") as caught:
        lower(graph, tmp_path)
    assert f"kept in fp32: {refused}" in {step.what for step in steps}
    assert "`trt-fp16` and `ort-cuda-fp16` keep them" in caught.value.hint


@pytest.mark.parametrize(
    ("scheme", "said", "hint"),
    [
        ("int8", "Linears named fp16", "fp32"),
        ("fp16", "kept in fp32: recipe", "`trt-fp16`"),
        ("bf16", "kept in fp32: recipe", "`trt-bf16`"),
    ],
)
def test_layers_that_a_weakly_typed_network_need_not_obey_are_refused(scheme, said, hint, tmp_path):
    graph = replace(quantized(tmp_path, scheme), steps=(Step("quantize", said, 1, "MatMul of fc1: named"),))
    with pytest.raises(UnsupportedError) as caught:
        lower(graph, tmp_path)
    assert hint in caught.value.hint


def test_every_option_is_one_that_the_installed_provider_knows():
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not library.is_file():
        pytest.skip("this onnxruntime has no TensorRT provider: pip install onnxruntime-gpu in its place")
    names = library.read_bytes()
    asked = [each.name for each in fields(TensorrtOptions)] + list(TensorrtOptions.REFUSED)
    assert not [name for name in asked if f"\0{name}\0".encode() not in names]


@without_gpu
def test_without_a_gpu_the_engine_is_graph_only_and_records_its_options(tmp_path):
    made = lower(quantized(tmp_path, "fp32"), tmp_path)
    engine = OrtTrt(TensorrtOptions(trt_builder_optimization_level=5)).build(made)
    assert (engine.status, engine.reason) == ("graph-only", BLOCKER)
    recorded = engine.details["provider_options"]
    assert recorded["TensorrtExecutionProvider"]["trt_builder_optimization_level"] == "5"
    assert recorded["TensorrtExecutionProvider"]["trt_profile_max_shapes"] == "x:4x32x32,mask:4x1x1x32"
    assert CudaOptions.from_mapping(recorded["CUDAExecutionProvider"]) == CudaOptions()
    assert engine.details["scheme"] == "fp32"


@without_gpu
def test_options_given_at_export_go_to_their_own_provider_and_are_recorded(tmp_path):
    options = TargetOptions(provider={"trt_auxiliary_streams": "0", "device_id": "1", "gpu_mem_limit": "1000"})
    RUNTIME.check_options(options, "fp32")
    recorded = RUNTIME.build(lower(quantized(tmp_path, "fp32"), tmp_path), options).details["provider_options"]
    tensorrt = TensorrtOptions.from_mapping(recorded["TensorrtExecutionProvider"])
    assert (tensorrt.trt_auxiliary_streams, tensorrt.device_id) == (0, 1)
    assert CudaOptions.from_mapping(recorded["CUDAExecutionProvider"]) == CudaOptions(gpu_mem_limit=1000)


@without_gpu
def test_without_a_gpu_a_session_is_refused_not_moved_to_the_cpu(tmp_path):
    made = lower(quantized(tmp_path, "fp32"), tmp_path)
    assert RUNTIME.readiness().reason == BLOCKER
    with pytest.raises(UnsupportedError, match="ort-trt cannot run here") as caught:
        RUNTIME.session(made.path.parent, {"graph": "model.onnx", "details": {"scheme": "fp32"}})
    assert BLOCKER in str(caught.value)


@pytest.mark.requires_gpu
@pytest.mark.skipif(bool(BLOCKER), reason=BLOCKER)
@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_on_the_gpu(scheme, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = lower(quantized(tmp_path, scheme), tmp_path)
    engine = RUNTIME.build(made)
    assert engine.status == "executed"
    assert engine.details["placement"].get("CPUExecutionProvider", 0) == 0
    session = RUNTIME.session(made.path.parent, {"graph": "model.onnx", "details": engine.details})
    assert session.ran_on.endswith("TensorrtExecutionProvider")
    assert list((tmp_path / "cache").rglob("*.engine"))
    expected, actual = portable_session(made.path).run(FEEDS)["y"], session.run(FEEDS)["y"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-2)
