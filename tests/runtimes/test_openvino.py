"""OpenVINO: its CPU kernels answer in the precision that the graph says, and a runtime plugs in from outside."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from ort_graphs import CachedCase, Case, decoder_feeds, written

from runtimes import portable_session
from runtimes.openvino import RUNTIME
from runtimes.openvino.library import INSTALL, core, properties
from runtimes.openvino.products import quantized_products
from runtimes.openvino.session import ENGINE_FILE, OpenVinoSession
from toolkit import plugins
from toolkit.bundle.read import open_bundle
from toolkit.bundle.write import engine_mapping
from toolkit.cli import main
from toolkit.errors import MissingDependencyError, StageError, UnsupportedError, UsageError
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.target import parse_target

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason=f"openvino is not installed ({INSTALL})"
)
pytestmark = needs_openvino


def capabilities() -> list[str]:
    """The number types that the CPU device names."""
    return list(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


FEATURES = [
    {"mask": "padding"},
    {"mask": "empty-row"},
    {"mask": "float", "left": 1},
    {"mask": "padding", "causal": 1},
    {"kv_heads": 2, "softcap": 2.0, "mask": "rows"},
    {"value_size": 6, "keys": 7, "queries": 3, "causal": 1},
    {"alibi": True, "mask": "padding", "causal": 1, "kv_heads": 1},
]


def built(graph, folder):
    """The engine of a quantized graph, and its session."""
    engine = RUNTIME.build(RUNTIME.lower(graph, folder / "lowered"))
    return engine, RUNTIME.session(engine.graph.path.parent, engine_mapping(engine))


def product(folder, weight_axis: int = 1, activation: type = np.int8):
    """x [batch, 64] times an int8 weight [64, 32], both behind Q/DQ, as a quantized graph."""
    rng = np.random.default_rng(0)
    body = (
        "xq = QuantizeLinear(x, xs, xz)\nxd = DequantizeLinear(xq, xs, xz)\n"
        f"w = DequantizeLinear<axis={weight_axis}>(wq, ws, wz)\ny = MatMul(xd, w)"
    )
    text = (
        f'<ir_version: 10, opset_import: ["" : 23]>\ntiny (float[batch, 64] x) => (float[batch, 32] y)\n{{\n{body}\n}}'
    )
    proto = onnx.parser.parse_model(text)
    channels = (64, 32)[weight_axis]
    constants = {
        "xs": np.float32(0.03),
        "xz": activation(0),
        "wq": rng.integers(-127, 128, (64, 32)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.02, channels).astype(np.float32),
        "wz": np.zeros(channels, np.int8),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    return written(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), folder, "int8")


@pytest.mark.parametrize("feature", FEATURES, ids=str)
def test_attention_answers_what_its_function_body_does(feature, tmp_path):
    case = Case(**feature)
    graph = written(case.model(), tmp_path)
    expected, (engine, session) = portable_session(graph.path).run(case.feeds()), built(graph, tmp_path)
    actual = session.run(case.feeds())
    assert list(actual) == list(expected)
    for name, want in expected.items():
        np.testing.assert_allclose(actual[name], want, rtol=0, atol=1e-5)
    domains = {node.domain for node in ir.load(engine.graph.path).graph}
    assert domains == {""}
    assert not ir.load(engine.graph.path).functions


def test_a_past_goes_in_and_presents_come_out(tmp_path):
    graph = CachedCase().quantized(tmp_path)
    feeds = decoder_feeds(graph.spec, 2, 3, 4)
    expected, (_, session) = portable_session(graph.path).run(feeds), built(graph, tmp_path)
    actual = session.run(feeds)
    assert set(actual) == set(expected)
    for name, want in expected.items():
        np.testing.assert_allclose(actual[name], want, rtol=0, atol=1e-5)


def test_quantized_products_run_in_int8_and_the_engine_says_so(tmp_path):
    graph = product(tmp_path)
    engine, session = built(graph, tmp_path)
    x = {"x": np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)}
    expected = portable_session(graph.path, rounded=True).run(x)["y"]
    np.testing.assert_allclose(session.run(x)["y"], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert engine.status == "executed"
    assert engine.details["products"] == {"int8": 1}
    assert "1 of 1 products int8" in engine.said
    weights = (engine.graph.path.parent / "model.bin").stat().st_size
    assert 64 * 32 <= weights < 2 * 64 * 32, "the weight stays int8 on disk"


def test_a_quantized_product_that_would_run_in_float_is_refused(tmp_path):
    graph = product(tmp_path, weight_axis=0)
    assert len(quantized_products(graph.path)) == 1
    with pytest.raises(StageError, match="runs 0 products in int8, of 1") as caught:
        RUNTIME.build(RUNTIME.lower(graph, tmp_path / "lowered"))
    assert "exclude" in caught.value.hint


def test_fp32_stays_fp32_where_the_library_would_choose_bf16(tmp_path):
    case = Case(queries=33, keys=33, size=32, value_size=32)
    engine, session = built(written(case.model(), tmp_path), tmp_path)
    assert properties()["INFERENCE_PRECISION_HINT"] == "f32"
    assert str(session.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()) == "f32"
    default = core().compile_model(engine.graph.path.parent / ENGINE_FILE, "CPU")
    expected = portable_session(engine.graph.path).run(case.feeds())
    name = next(iter(expected))
    errors = [
        float(np.abs(answer - expected[name]).max())
        for answer in (session.run(case.feeds())[name], default(case.feeds())[name])
    ]
    assert errors[0] < 1e-5
    if "BF16" in capabilities():
        assert errors[1] > 10 * errors[0], "the default is bf16 no more: the hint can go"


def test_bf16_is_where_the_graph_has_it_and_nowhere_else(tmp_path):
    if "BF16" not in capabilities():
        pytest.skip("this processor has no bf16 instructions")
    text = """<ir_version: 10, opset_import: ["" : 23]>
    tiny (float[batch, 64] x) => (float[batch, 32] y, float[batch, 32] z) {
        xb = Cast<to=16>(x)
        yb = MatMul(xb, narrow)
        y = Cast<to=1>(yb)
        z = MatMul(x, wide)
    }"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    narrow = ir.serde.serialize_tensor(ir.tensor(weight.astype(ir.DataType.BFLOAT16.numpy()), name="narrow"))
    proto.graph.initializer.extend([narrow, onnx.numpy_helper.from_array(weight[:, ::-1].copy(), "wide")])
    graph = written(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), tmp_path, "bf16")
    engine, session = built(graph, tmp_path)
    assert engine.details["products"] == {"bf16": 1, "fp32": 1}
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    answer, exact = session.run({"x": x}), x @ weight
    np.testing.assert_allclose(answer["z"], exact[:, ::-1], rtol=0, atol=1e-4)
    away = np.abs(answer["y"] - exact).max()
    assert 1e-3 < away < 0.2


class TestSession:
    @pytest.fixture
    def session(self, tmp_path):
        _, session = built(product(tmp_path), tmp_path)
        yield session
        session.close()

    def test_outputs_outlive_the_next_run(self, session):
        first = session.run({"x": np.ones((1, 64), np.float32)})["y"]
        kept = first.copy()
        session.run({"x": -np.ones((1, 64), np.float32)})
        np.testing.assert_array_equal(first, kept)

    def test_inputs_that_are_not_contiguous_are_read_right(self, session):
        x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
        np.testing.assert_array_equal(session.run({"x": x.T})["y"], session.run({"x": x.T.copy()})["y"])

    @pytest.mark.parametrize(
        "inputs",
        [
            {},
            {"x": np.ones((1, 64))},
            {"x": np.ones((1, 63), np.float32)},
            {"x": np.ones((64,), np.float32)},
            {"x": np.ones((1, 64), np.float32), "z": np.ones(1)},
        ],
        ids=["missing", "dtype", "size", "rank", "unknown"],
    )
    def test_wrong_inputs_are_refused_with_what_it_takes(self, session, inputs):
        with pytest.raises(UsageError) as caught:
            session.run(inputs)
        assert "x float32 [batch, 64]" in caught.value.hint

    def test_a_closed_session_says_so(self, session):
        session.close()
        with pytest.raises(UsageError, match="closed"):
            session.run({"x": np.ones((1, 64), np.float32)})


def test_a_damaged_engine_is_told_as_ours(tmp_path):
    engine, session = built(product(tmp_path), tmp_path)
    session.close()
    folder, entry = engine.graph.path.parent, engine_mapping(engine)
    (folder / ENGINE_FILE).write_text("<net", encoding="utf-8")
    with pytest.raises(StageError, match=re.escape(ENGINE_FILE)):
        RUNTIME.session(folder, entry)
    (folder / ENGINE_FILE).unlink()
    with pytest.raises(StageError, match="no engine file"):
        RUNTIME.session(folder, entry)
    with pytest.raises(UsageError, match="does not say what it takes"):
        RUNTIME.session(folder, {**entry, "details": {}})


def test_two_rows_of_several_lengths_are_refused_not_broadcast(tmp_path):
    graph = written(Case(mask="padding").model(), tmp_path)
    _, session = built(graph, tmp_path)
    feeds = Case(mask="padding").feeds()
    with pytest.raises(UsageError, match="dimension 'batch'"):
        session.run({**feeds, "mask": feeds["mask"][:1]})


def test_without_the_library_a_graph_is_lowered_and_no_engine_opens(tmp_path, monkeypatch):
    graph = product(tmp_path)
    core.cache_clear()
    monkeypatch.setattr("runtimes.openvino.library.MODULE", None)
    ready = RUNTIME.readiness()
    assert not ready.build
    assert not ready.run
    assert ready.reason == f"openvino is not installed ({INSTALL})"
    engine = RUNTIME.build(RUNTIME.lower(graph, tmp_path / "lowered"))
    assert (engine.status, engine.reason) == ("graph-only", ready.reason)
    with pytest.raises(UnsupportedError, match="only its graph"):
        RUNTIME.session(engine.graph.path.parent, engine_mapping(engine))
    (tmp_path / ENGINE_FILE).touch()
    with pytest.raises(MissingDependencyError) as caught:
        OpenVinoSession(tmp_path / ENGINE_FILE, graph.spec.inputs)
    assert caught.value.hint == INSTALL


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The folder's code as another distribution, `elsewhere`, found by its entry point alone."""
    site, source = tmp_path / "site", Path(str(sys.modules["runtimes.openvino"].__file__)).parent
    shutil.copytree(source, site / "elsewhere", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (site / "elsewhere").glob("*.py"):
        path.write_text(path.read_text(encoding="utf-8").replace("runtimes.openvino", "elsewhere"), encoding="utf-8")
    record = site / "elsewhere-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n", encoding="utf-8")
    (record / "entry_points.txt").write_text("[toolkit.runtimes]\nelsewhere = elsewhere\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    plugins.listing.cache_clear()
    yield site
    plugins.listing.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "elsewhere"]:
        del sys.modules[name]


@pytest.mark.heavy
def test_a_runtime_of_another_package_goes_the_whole_line(elsewhere, tmp_path):
    """Nothing of ours names it: the interface is all that a runtime needs."""
    assert parse_target("elsewhere-int8").runtime == "elsewhere"
    listed = CliRunner().invoke(main, ["list", "targets", "--json"])
    assert '"elsewhere-bf16"' in listed.output
    (folder,) = export(plan(Request(model="vit-digits", targets=["elsewhere-int8"], output=tmp_path / "out", dims={})))
    assert Path(str(sys.modules["elsewhere"].__file__)).is_relative_to(elsewhere)
    manifest = open_bundle(folder).manifest
    assert manifest.engine.status == "executed"
    assert manifest.engine.details["products"] == {"int8": 26}
    assert manifest.engine.details["fused_attentions"] == manifest.engine.details["attentions"] == 4
    assert manifest.drift.passed
    checked = CliRunner().invoke(main, ["check", str(folder)])
    assert checked.exit_code == 0, checked.output
    assert "openvino" in checked.output
