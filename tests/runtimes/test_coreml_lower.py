"""From the canonical graph to a Core ML package: attention, weights, shapes, states, and what is refused."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from coreml_graphs import DIMS, built, from_text, interpreted
from tiny_decoders import MakeTiny
from trt_graphs import FEEDS, HEADS, HIDDEN, SPEC, Block

from runtimes import portable_session
from runtimes.coreml import RUNTIME
from runtimes.coreml.engine import PACKAGE, _demand_attention
from runtimes.coreml.lowering import lower_graph, lower_model
from runtimes.coreml.translate.mil import ct
from runtimes.coreml.translate.package import tidy
from runtimes.coreml.translate.program import translate
from toolkit import plugins
from toolkit.errors import MissingDependencyError, StageError, UnsupportedError
from toolkit.types import Calibration, Dim, Engine, ModelSpec, QuantizedGraph

SCHEMES = ("fp16", "int8", "int4", "palettized")
ATTENTION = "scaled_dot_product_attention"


def _block(folder: Path, scheme: str, *, int8: bool = False) -> Engine:
    """One transformer block of these weights, lowered and built."""
    model = Block(int8=int8).model()
    if not int8:
        plugins.scheme(scheme).apply(model, SPEC, _feeds() if scheme == "fp16" else None, {}, _recipe(scheme, SPEC))
    return _engine(model, SPEC, folder, scheme)


def _recipe(scheme: str, spec: ModelSpec) -> Any:
    """A scheme that would quantize activations too is had for its weights, as the runtime asks."""
    found = plugins.scheme(scheme)
    return found.weight_only(spec) if scheme == "int8" else found.recipe(spec)


def _engine(model: ir.Model, spec: ModelSpec, folder: Path, scheme: str) -> Engine:
    source = folder / "source" / "model.onnx"
    source.parent.mkdir(parents=True)
    ir.save(model, source, external_data="model.onnx.data")
    quantized = QuantizedGraph(source, spec, (), scheme)
    return RUNTIME.build(lower_graph(quantized, folder / "lowered", _feeds if spec is SPEC else None))


def _feeds() -> Calibration:
    return Calibration(lambda: iter([FEEDS]), 1, "the test")


def _entry(engine: Engine) -> Mapping[str, Any]:
    return {"files": [str(file) for file in engine.files], "details": engine.details}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_block_is_one_attention_and_its_weights_as_the_scheme_stores_them(scheme: str, tmp_path: Path) -> None:
    source = Block(int8=False).model()
    ir.save(source, tmp_path / "fp32.onnx")
    expected = portable_session(tmp_path / "fp32.onnx").run(FEEDS)["y"]

    engine = _block(tmp_path, scheme)

    operators = engine.details["operators"]
    kinds = {name: count for name, count in operators.items() if name.startswith("constexpr_")}
    stored = {"fp16": {}, "palettized": {"constexpr_lut_to_dense": 4}}
    assert kinds == stored.get(scheme, {"constexpr_blockwise_shift_scale": 4})
    assert (operators[ATTENTION], operators["linear"], operators.get("matmul")) == (1, 4, None)
    assert engine.status == "built"
    assert "Apple devices only" in engine.reason
    answered = RUNTIME.interpret(engine.graph.path.parent, _entry(engine)).run(FEEDS)["y"]
    lowered = portable_session(engine.graph.path).run(FEEDS)["y"]
    assert _sqnr(lowered, answered) > 60
    assert _sqnr(expected, answered) > {"fp16": 60, "int8": 40, "int4": 15, "palettized": 15}[scheme]


def test_quantized_activations_are_quantized_in_the_program_too(tmp_path: Path) -> None:
    engine = _block(tmp_path, "int8", int8=True)
    operators = engine.details["operators"]
    assert (operators["quantize"], operators["dequantize"], operators["constexpr_blockwise_shift_scale"]) == (2, 2, 4)
    lowered = portable_session(engine.graph.path).run(FEEDS)["y"]
    assert _sqnr(lowered, RUNTIME.interpret(engine.graph.path.parent, _entry(engine)).run(FEEDS)["y"]) > 40


def test_the_interface_has_the_ranges_of_the_spec_and_no_bools(tmp_path: Path) -> None:
    details = _block(tmp_path, "fp16").details
    assert details["inputs"]["x"] == {
        "dtype": "float32", "shape": [2, 16, HIDDEN], "ranges": [[1, 4], [1, 32], [HIDDEN, HIDDEN]],
    }  # fmt: skip
    assert details["inputs"]["mask"]["dtype"] == "int32"
    assert details["outputs"] == {"y": "float32"}
    assert details["deployment_target"] == "iOS18"


def test_coremltools_reads_the_package_back_and_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (_block(tmp_path / name, "int4") for name in ("first", "second"))
    reread = ct.models.MLModel(str(first.graph.path.parent / PACKAGE), skip_model_load=True)
    assert reread.get_spec().specificationVersion == ct.target.iOS18
    assert reread.user_defined_metadata["toolkit.graph"] == first.graph.sha256
    assert sum(PACKAGE in file.parts for file in first.files) == 3
    for file in first.files:
        made = [(engine.graph.path.parent / file).read_bytes() for engine in (first, second)]
        assert made[0] == made[1], file


@pytest.mark.parametrize(("scheme", "bits"), [("fp16", 16), ("int8", 8), ("int4", 4), ("palettized", 4)])
def test_weights_take_the_bytes_that_the_scheme_promises(scheme: str, bits: int, tmp_path: Path) -> None:
    inputs, outputs = 512, 256
    weight = np.random.default_rng(0).normal(size=(inputs, outputs)).astype(np.float32)
    # The last Linear is kept in more bits than the scheme says; here it is small.
    last = np.ones((outputs, 32), np.float32)
    text = f"block (float[batch, steps, {inputs}] x) => (float[] y) {{ a = MatMul (x, w)\n y = MatMul (a, last) }}"
    model = from_text(text, {"w": weight, "last": last})
    spec = ModelSpec("linear", "tiny", "module", "raw", "tiny", "Linear", (), (), DIMS)
    samples = Calibration(lambda: iter([{"x": np.ones((1, 4, inputs), np.float32)}]), 1, "the test")
    plugins.scheme(scheme).apply(model, spec, samples if scheme == "fp16" else None, {}, _recipe(scheme, spec))
    lower_model(model, lambda: samples, scheme)

    built(model, tmp_path / PACKAGE)

    own = sum(path.stat().st_size for path in tmp_path.rglob("weight.bin"))
    scales = {"int8": 2 * outputs, "int4": 2 * outputs * inputs // 32, "palettized": 2 * outputs}.get(scheme, 0)
    promised = inputs * outputs * bits // 8 + scales
    assert promised <= own < promised + last.size * 2 + 2048


def test_heads_of_keys_are_repeated_and_an_odd_scale_goes_onto_the_queries() -> None:
    model = Block(int8=False).model()
    node = next(node for node in model.graph if node.op_type == "FusedAttention")
    node.attributes["scale"] = ir.AttrFloat32("scale", 0.5)
    for index in (1, 2):
        node.inputs[index].shape = ir.Shape(["batch", 1, "sequence", HIDDEN // HEADS])
    steps = {step.what: step.count for step in lower_model(model)}
    made = Counter(node.op_type for node in model.graph)
    assert steps["queries scaled"] == steps["key/value heads repeated for their queries"] == 1
    assert made["Tile"] == 2
    assert "scale" not in next(node for node in model.graph if node.op_type == "Attention").attributes


@pytest.mark.parametrize("name", ["mistral", "gemma2", "bloom"])
def test_a_language_model_keeps_its_cache_as_states(name: str, tiny: MakeTiny, tmp_path: Path) -> None:
    made = tiny(name)
    model = ir.load(made.graph.path)
    plugins.scheme("fp16").apply(model, made.spec, Calibration(lambda: iter(made.golden[:1]), 1, "the test"), {})

    engine = _engine(model, made.spec, tmp_path, "fp16")

    details = engine.details
    assert set(details["states"]) == {
        f"past_key_values_{layer}_{part}" for layer in range(2) for part in ("key", "value")
    }
    assert all(state["dtype"] == "float16" and state["shape"][0] == 1 for state in details["states"].values())
    assert {"input_ids", "attention_mask", "write_indices"} <= set(details["inputs"])
    assert details["inputs"]["input_ids"]["ranges"] == [[1, 1], [1, 64]]
    assert details["outputs"] == {"logits": "float32"}
    # Core ML's attention has no softcap, which the log says.
    steps = {step.what for step in engine.graph.steps}
    assert details["attention"] == (0 if name == "gemma2" else 2)
    assert ("attention as MatMul and Softmax, not fused" in steps) == (name == "gemma2")
    session = RUNTIME.interpret(engine.graph.path.parent, _entry(engine))
    for batch, expected in zip(made.golden, made.expected, strict=True):
        real = batch["attention_mask"][:, -batch["input_ids"].shape[1] :].astype(bool)
        assert _sqnr(expected["logits"][real], session.run(batch)["logits"][real]) > 55


def test_what_is_computed_from_weights_alone_is_computed_once(tmp_path: Path) -> None:
    nodes = """
        turned = Transpose <perm: ints = [0, 3, 1, 2]> (w)
        wide = Resize <mode: string = "cubic"> (turned, , , sizes)
        y = Add (x, wide)
    """
    sizes = np.array([1, 3, 8, 8])
    weights = {"w": np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32), "sizes": sizes}
    model = from_text(f"case (float[batch, 3, 8, 8] x) => (float[batch, 3, 8, 8] y) {{ {nodes} }}", weights)
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    ir.save(model, tmp_path / "model.onnx")
    expected = portable_session(tmp_path / "model.onnx").run({"x": x})["y"]

    steps = lower_model(model)

    assert [node.op_type for node in model.graph] == ["Add"]
    assert any(step.what == "tensors computed from weights alone" and step.count == 1 for step in steps)
    np.testing.assert_allclose(interpreted(model, {"x": x}, tmp_path)["y"], expected, atol=1e-6)


def test_an_attention_that_is_lost_on_the_way_is_named(tmp_path: Path) -> None:
    model = Block(int8=False).model()
    lower_model(model, None, "int8")
    program = translate(model, SPEC.dims)
    tidy(program)
    _demand_attention(model, program)
    node = next(node for node in model.graph if node.op_type == "Attention")
    another = ir.node("Attention", node.inputs, name="layers.0.attention")
    another.outputs[0].name = "another"
    node.append(another)
    with pytest.raises(StageError, match=r"1 of 2 attentions are one operator .*; missing: layers\.0\.attention"):
        _demand_attention(model, program)


def test_a_cache_for_several_rows_and_a_dimension_without_a_range_are_refused(tmp_path: Path) -> None:
    model = from_text("case (float[rows, 3] x) => (float[rows, 3] y) { y = Abs (x) }")
    with pytest.raises(UnsupportedError, match="'x' has a dimension 'rows' of no known range"):
        interpreted(model, {}, tmp_path)
    text = "case (float16[batch, 2, 8, 4] past_key_values.0.key) => (float16[batch, 2, 8, 4] y) { y = Abs (past) }"
    model = from_text(text.replace("past_key_values.0.key", "past"))
    model.graph.inputs[0].name = "past_key_values.0.key"
    with pytest.raises(UnsupportedError, match=r"the cache 'past_key_values\.0\.key' has no fixed shape"):
        interpreted(model, {}, tmp_path)


def test_without_coremltools_nothing_is_built_and_the_hint_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready = RUNTIME.readiness()
    assert (ready.build, ready.run) == (True, platform.system() == "Darwin")
    graph = _block(tmp_path, "fp16").graph
    monkeypatch.setitem(sys.modules, "coremltools", None)
    assert RUNTIME.readiness().reason == "coremltools is not installed"
    with pytest.raises(MissingDependencyError, match="needs coremltools") as raised:
        RUNTIME.build(graph)
    assert raised.value.hint == "pip install 'transformer-export-toolkit[coreml]'"


def test_a_dimension_of_one_size_is_no_range(tmp_path: Path) -> None:
    model = from_text("case (float[batch, steps] x) => (float[batch, steps] y) { y = Abs (x) }")
    written = built(model, tmp_path / PACKAGE, {"batch": Dim(1, 1, 1), "steps": Dim(4, 4, 4)})
    assert written.inputs == {"x": {"dtype": "float32", "shape": [1, 4]}}


def _sqnr(expected: np.ndarray, answered: np.ndarray) -> float:
    error = np.square(expected.astype(np.float64) - answered).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / error)) if error else np.inf
