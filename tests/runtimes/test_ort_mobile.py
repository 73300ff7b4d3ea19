"""Engines for phones: one fixed shape in operators that their providers know, fed with any rows and lengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession
from ort_graphs import Case, written

from quantize.stage import apply_scheme
from runtimes import portable_session
from runtimes.ort_mobile import RUNTIME
from toolkit.bundle.write import engine_entry, engine_mapping
from toolkit.drift.metrics import sqnr_db
from toolkit.errors import StageError, UnsupportedError, UsageError
from toolkit.plan import Request, plan
from toolkit.types import Calibration, Dim, Engine, ExportedGraph, LoweredGraph, ModelSpec, TensorSpec

WORDS, WIDTH, LONGEST = 40, 512, 8
SHAPES = ((1, 8), (3, 5), (2, 1))

TEXT = f"""
<ir_version: 10, opset_import: ["" : 21]>
tiny (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)
    => (float[batch, sequence, {WIDTH}] tokens, float[batch, {WIDTH}] first, float[batch, {WIDTH}] embedding)
{{
    vectors = Gather(table, input_ids)
    product = MatMul(vectors, weight)
    linear = Add(product, bias)
    tokens = LayerNormalization<axis = -1>(linear, scale, bias)
    zero = Constant<value = int64 {{0}}>()
    first = Gather<axis = 1>(tokens, zero)
    last = Constant<value = int64[1] {{-1}}>()
    middle = Constant<value = int64[1] {{1}}>()
    wide = Unsqueeze(attention_mask, last)
    sizes = Shape(tokens)
    full = Expand(wide, sizes)
    mask = Cast<to = 1>(full)
    attended = Mul(tokens, mask)
    sum = ReduceSum<keepdims = 0>(attended, middle)
    count = ReduceSum<keepdims = 0>(mask, middle)
    mean = Div(sum, count)
    norm = ReduceL2<keepdims = 1>(mean, last)
    embedding = Div(mean, norm)
}}
"""
"""An encoder with what phones' providers lack: arithmetic on shapes, Expand, ReduceL2, a class token by Gather."""


def text_spec() -> ModelSpec:
    both = tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    outputs = (
        TensorSpec("tokens", "float32", ("batch", "sequence", WIDTH)),
        TensorSpec("first", "float32", ("batch", WIDTH)),
        TensorSpec("embedding", "float32", ("batch", WIDTH)),
    )
    dims = {"batch": Dim(1, 2, 4), "sequence": Dim(1, LONGEST, LONGEST)}
    return ModelSpec("tiny", "bert", "encoder", "embedding", "none", "Tiny", both, outputs, dims)


def text_graph(folder: Path) -> ExportedGraph:
    model = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    arrays = {
        "table": rng.standard_normal((WORDS, WIDTH)),
        "weight": rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH),
        "bias": rng.standard_normal(WIDTH) / 10,
        "scale": np.ones(WIDTH),
    }
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    path = folder / "canonical.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return ExportedGraph(path, text_spec())


def feeds(rows: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    lengths = rng.integers(1, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(0, WORDS, (rows, length)) * mask, "attention_mask": mask}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """The text graph in every scheme."""
    folder = tmp_path_factory.mktemp("mobile")
    exported = text_graph(folder)
    calibration = Calibration(lambda: (feeds(*shape) for shape in SHAPES), 6, "random")
    made = {}
    for scheme in ("fp32", "fp16", "int8"):
        quantized = apply_scheme(exported, scheme, calibration, folder / f"quantized-{scheme}", {})
        made[scheme] = RUNTIME.build(RUNTIME.lower(quantized, folder / scheme))
    return made


def lowered(engine: Engine) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(engine.graph.path).graph)


@pytest.mark.parametrize(("scheme", "least"), [("fp32", 120.0), ("fp16", 60.0), ("int8", 25.0)])
def test_any_rows_and_lengths_give_what_the_model_gives(
    engines: dict[str, Engine], scheme: str, least: float, tmp_path: Path
) -> None:
    engine, wanted = engines[scheme], portable_session(text_graph(tmp_path).path)
    session = RUNTIME.session(engine.graph.path.parent, engine_mapping(engine))
    for shape in SHAPES:
        given = feeds(*shape)
        expected, answers = wanted.run(given), session.run(given)
        assert answers.keys() == expected.keys()
        for name, answer in answers.items():
            mask = given["attention_mask"][..., None] if name == "tokens" else 1
            assert sqnr_db(expected[name] * mask, answer * mask) > least, (name, shape)


def test_the_lowered_graph_runs_as_the_engine_does(engines: dict[str, Engine]) -> None:
    """It is what `toolkit check --on-cpu` opens."""
    for engine in engines.values():
        session = portable_session(engine.graph.path, spec=text_spec())
        assert session.run(feeds(3, 5))["tokens"].shape == (3, 5, WIDTH)


def test_all_is_of_one_shape_and_nothing_computes_shapes(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        operators = lowered(engine)
        assert not {"Shape", "Expand", "ReduceL2", "Concat"} & operators.keys()
        assert operators["Gather"] == 1  # the words' vectors; the class token became a Slice
        assert [tensor.shape for tensor in engine.inputs] == [(1, LONGEST)] * 2
        assert [tensor.shape for tensor in engine.outputs] == [(1, LONGEST, WIDTH), (1, WIDTH), (1, WIDTH)]
        assert engine_entry(engine).inputs == engine.inputs
        assert engine.status == "executed"


def test_core_ml_is_told_to_know_all_but_the_word_vectors(engines: dict[str, Engine]) -> None:
    for scheme in ("fp32", "fp16"):
        found = engines[scheme].details["providers"]["Core ML"]
        assert found["left"] == ("Gather",)
        assert (found["parts"], found["verdict"]) == (1, "YES")
    assert "QuantizeLinear" in engines["int8"].details["providers"]["Core ML"]["left"]
    assert "Core ML knows" in engines["fp32"].said


def test_half_precision_halves_the_file_and_computes_in_float32(engines: dict[str, Engine]) -> None:
    sizes = {scheme: engine.details["bytes"] for scheme, engine in engines.items()}
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    model = ir.load(engines["fp16"].graph.path)
    half = {value.name for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT16}
    readers = {use.node.op_type for node in model.graph for v in node.outputs if v.name in half for use in v.uses()}
    assert readers <= {"Cast"}


def test_integer_kernels_are_in_the_file_and_on_the_list(engines: dict[str, Engine]) -> None:
    listed = {
        scheme: (engine.graph.path.parent / engine.files[1]).read_text("utf-8") for scheme, engine in engines.items()
    }
    assert "MatMulIntegerToFloat" in listed["int8"]
    assert "com.microsoft" not in listed["fp32"]  # standard operators, which a phone's providers know
    for text in listed.values():
        assert "# - model.ort\n" in text
        assert str(Path.cwd()) not in text


def test_the_format_is_the_version_that_phones_read(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        content = bytearray((engine.graph.path.parent / engine.files[0]).read_bytes())
        assert InferenceSession.GetRootAsInferenceSession(content, 0).OrtVersion() == b"6"


def test_what_does_not_fit_is_refused(engines: dict[str, Engine]) -> None:
    engine = engines["fp32"]
    session = RUNTIME.session(engine.graph.path.parent, engine_mapping(engine))
    with pytest.raises(UsageError, match="sequence is 9 in 'input_ids'; the engine takes at most 8") as caught:
        session.run(feeds(1, LONGEST + 1))
    assert "--dim sequence=1:9:9" in caught.value.hint
    with pytest.raises(UsageError, match="no rows"):
        session.run({name: array[:0] for name, array in feeds(1, 4).items()})
    with pytest.raises(UsageError, match="'batch' is 2"):
        session.run({**feeds(2, 4), "attention_mask": np.ones((1, 4), np.int64)})


@pytest.mark.parametrize("change", [{"files": []}, {"details": {}}, {"details": {"model": {"inputs": [{}]}}}])
def test_a_damaged_entry_is_told(engines: dict[str, Engine], change: dict[str, Any]) -> None:
    engine = engines["fp32"]
    with pytest.raises(UsageError, match="engine's entry"):
        RUNTIME.session(engine.graph.path.parent, {**engine_mapping(engine), **change})


@pytest.mark.parametrize(
    "case",
    [
        Case(mask="padding"), Case(mask="padding", kv_heads=2, softcap=5.0), Case(mask="rows", causal=1),
        Case(mask="padding", alibi=True), Case(mask="padding", left=2, right=1),
    ],
)  # fmt: skip
def test_attention_in_products_means_the_same(case: Case, tmp_path: Path) -> None:
    graph = written(case.model(), tmp_path / "canonical")
    outputs = (TensorSpec("y0", "float32", ("batch", "queries", case.heads * case.value_size)),)
    dims = {"batch": Dim(1, 2, 4), "queries": Dim(1, 6, 6), "keys": Dim(1, 6, 6)}
    graph = replace(graph, spec=replace(graph.spec, outputs=outputs, dims=dims))
    engine = RUNTIME.build(RUNTIME.lower(graph, tmp_path / "lowered"))
    assert not {"Attention", "FusedAttention"} & lowered(engine).keys()
    session = RUNTIME.session(tmp_path / "lowered", engine_mapping(engine))
    # Five of six keys: the sixth is padding, which the zeros in the mask forbid.
    expected = portable_session(graph.path).run(case.feeds())["y0"]
    np.testing.assert_allclose(session.run(case.feeds())["y0"], expected, atol=2e-6)


def test_a_command_for_phones_has_one_size() -> None:
    alone = Request("all-minilm-l6-v2", ["ort-mobile-fp32"], weights="random")
    assert plan(alone).spec.dims["sequence"] == Dim(1, 128, 128)
    both = replace(alone, targets=["ort-mobile-fp32", "ort-cpu-fp32"])
    with pytest.raises(UsageError, match="ort-mobile-fp32 has one fixed size of sequence") as caught:
        plan(both)
    assert "--dim sequence=1:128:128" in caught.value.hint
    chosen = plan(replace(both, dims={"sequence": Dim(1, 64, 64)}))
    assert chosen.spec.dims["sequence"] == Dim(1, 64, 64)


def test_language_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="'ort-mobile' does not take models of kind 'decoder'"):
        plan(Request("smollm2-135m-instruct", ["ort-mobile-int8"], weights="random"))
    with pytest.raises(UnsupportedError, match="no language models") as caught:
        RUNTIME.decoder(tmp_path, {}, None, limit=1, rows=1)  # type: ignore[arg-type]
    assert "ort-cpu-int4" in caught.value.hint


def test_a_graph_that_is_refused_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    spec = text_spec()
    with pytest.raises(StageError, match="cannot convert"):
        RUNTIME.build(LoweredGraph(path, spec, (), scheme="fp32", runtime="ort-mobile"))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
