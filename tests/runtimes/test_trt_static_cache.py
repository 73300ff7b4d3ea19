"""A cache of fixed length, written in place: the numbers of the cache that grows, in the form that TensorRT takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from decoder_pair import Pair
from numpy.typing import NDArray
from tiny_decoders import LENGTH, WINDOW, MakeTiny, TinyDecoder

from exporters.fused_attention import attach_function
from model_zoo._decoder import without_past
from quantize import quantize
from runtimes import portable_decoder, portable_session
from runtimes._tensorrt.lowering import lower_graph, lower_model
from runtimes._tensorrt.preflight import objections
from runtimes._tensorrt.runtime import TensorRT
from toolkit.bundle.write import engine_entry
from toolkit.cache_names import is_past, is_present, present_of
from toolkit.errors import UnsupportedError, UsageError
from toolkit.generation.session_decoder import SessionDecoder
from toolkit.generation.static_cache import GrowingSession, growing, has_static_cache
from toolkit.plan import Request, plan
from toolkit.types import (
    Calibration,
    Engine,
    ExportedGraph,
    LoweredGraph,
    TargetOptions,
    Tensors,
    TensorSpec,
)

MODELS = ("mistral", "gemma2", "bloom")
STATIC = TargetOptions(cache="static")
rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def lowered(made: TinyDecoder, scheme: str, folder: Path, options: TargetOptions = STATIC) -> LoweredGraph:
    calibration = Calibration(lambda: iter(made.golden), len(made.golden), "golden inputs")
    quantized = quantize(made.graph, scheme, calibration, folder / "quantized", packed={})
    return lower_graph(quantized, folder / options.cache, "trt", None, options)


def answers(path: Path, golden: list[Tensors]) -> list[dict[str, NDArray[Any]]]:
    session = portable_session(path)
    try:
        return [session.run(batch) for batch in golden]
    finally:
        session.close()


def differences(
    got: list[dict[str, NDArray[Any]]], expected: list[dict[str, NDArray[Any]]], golden: list[Tensors]
) -> Iterator[float]:
    """The largest difference of each output at real tokens; what a padded one attends, or nothing, is no matter."""
    for left, right, batch in zip(got, expected, golden, strict=True):
        assert left.keys() == right.keys()
        real = batch["attention_mask"].astype(bool)
        for name, array in left.items():
            assert array.shape == right[name].shape
            off = np.abs(array.astype(np.float32) - right[name])
            by_token = off.transpose(0, 2, 1, 3) if is_present(name) else off
            alone = by_token.shape[1] == 1
            yield float((by_token if alone else by_token[real[:, -by_token.shape[1] :]]).max())


@pytest.mark.parametrize("name", MODELS)
def test_as_the_eager_model_in_prefill_chunks_and_single_tokens(name: str, tiny: MakeTiny, tmp_path: Path) -> None:
    made = tiny(name)
    graph = lowered(made, "fp32", tmp_path)
    assert max(differences(answers(graph.path, made.golden), made.expected, made.golden)) <= 1e-4


@pytest.mark.parametrize(("name", "scheme"), [*product(["mistral", "gemma2"], ["fp16", "int4"]), ("bloom", "bf16")])
def test_as_the_cache_that_grows_in_half_precision(name: str, scheme: str, tiny: MakeTiny, tmp_path: Path) -> None:
    made = tiny(name)
    static, concat = (
        answers(lowered(made, scheme, tmp_path, options).path, made.golden) for options in (STATIC, TargetOptions())
    )
    assert max(differences(static, concat, made.golden)) <= 1e-3


def test_last_logits_find_the_last_token_of_each_row(tiny: MakeTiny, tmp_path: Path) -> None:
    made = tiny("bloom", True)
    graph = lowered(made, "fp32", tmp_path)
    got = answers(graph.path, made.golden)
    assert got[2]["logits"].shape == (2, 1, 96)
    assert max(differences(got, made.expected, made.golden)) <= 1e-4


def test_the_form_is_what_tensorrt_demands(tiny: MakeTiny, tmp_path: Path) -> None:
    graph = lowered(tiny("mistral"), "fp16", tmp_path)
    model = ir.load(graph.path)
    assert model.opset_imports[""] == 24
    assert not list(objections(model))
    scatters = [node for node in model.graph if node.op_type == "TensorScatter"]
    assert len(scatters) == 4
    for node in scatters:
        past, new, places = node.inputs
        assert past is not None and new is not None and places is not None
        assert past.is_graph_input() and node.outputs[0].is_graph_output()
        assert node.outputs[0].name == present_of(str(past.name))
        assert past.dtype == node.outputs[0].dtype == ir.DataType.FLOAT16
        assert str(past.shape) == f"[batch,2,{LENGTH},16]"
        assert (places.name, places.dtype) == ("write_indices", ir.DataType.INT64)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert all(len(node.inputs) == 4 and not node.attributes.get_int("is_causal", 0) for node in attentions)
    assert not [node for node in model.graph if node.op_type == "Concat" and node.attributes.get_int("axis", 0) == 2]


def test_the_preflight_names_a_buffer_that_is_not_the_callers_own(tiny: MakeTiny, tmp_path: Path) -> None:
    model = ir.load(lowered(tiny("mistral"), "fp16", tmp_path).path)
    first, second, third, _ = (node for node in model.graph if node.op_type == "TensorScatter")
    cast = ir.node("Cast", [first.inputs[0]], {"to": ir.DataType.FLOAT16}, name="cast")
    model.graph.insert_before(first, cast)
    first.replace_input_with(0, cast.outputs[0])
    model.graph.outputs.remove(second.outputs[0])
    past = third.inputs[0]
    assert past is not None
    past.shape = ir.Shape(["batch", 2, "length", 16])
    found = " ".join(map(str, objections(model)))
    for problem in ("no input of the graph", "no output of the graph", "is not fixed"):
        assert found.count(problem) == 1, found


def test_the_concat_form_keeps_its_opset_and_the_other_operators_are_the_same(tiny: MakeTiny, tmp_path: Path) -> None:
    made = tiny("mistral")
    static, concat = (ir.load(lowered(made, "fp32", tmp_path, options).path) for options in (STATIC, TargetOptions()))
    assert concat.opset_imports[""] == ir.load(made.graph.path).opset_imports[""] == 23
    written = {node.op_type for node in static.graph}
    # The operators that opset 24 changed in more than types, at their new meaning's defaults.
    for op_type in written:
        new, old = (
            onnx.defs.get_schema(op_type, opset, "") for opset in (24, 24 if op_type == "TensorScatter" else 23)
        )
        for name, attribute in old.attributes.items():
            assert new.attributes[name].default_value == attribute.default_value
        more = set(new.attributes) - set(old.attributes)
        assert not [node for node in static.graph if node.op_type == op_type and more & set(node.attributes)]
    assert all(len(node.inputs) < 7 for node in static.graph if node.op_type == "Attention")


def test_the_spec_and_the_manifest_say_what_to_bind(tiny: MakeTiny, tmp_path: Path) -> None:
    made = tiny("mistral")
    graph = lowered(made, "fp16", tmp_path)
    assert has_static_cache(graph.spec.inputs)
    shapes = {item.name: (item.dtype, item.shape) for item in graph.spec.inputs}
    assert shapes["write_indices"] == ("int64", ("batch",))
    assert shapes["attention_mask"] == ("int64", ("batch", LENGTH))
    assert shapes["past_key_values.1.value"] == ("float16", ("batch", 2, LENGTH, 16))
    entry = engine_entry(Engine(graph, "graph-only", "none"))
    assert entry.inputs == graph.spec.inputs
    assert {item.name for item in entry.outputs} == {item.name for item in made.spec.outputs}
    assert not engine_entry(Engine(lowered(made, "fp32", tmp_path, TargetOptions()), "graph-only", "none")).inputs


def test_the_length_left_open_changes_no_number(tiny: MakeTiny, tmp_path: Path) -> None:
    """The very file, its buffers as long as it says, what no token has written full of other numbers."""
    made = tiny("mistral")
    graph = lowered(made, "fp32", tmp_path)
    batch, expected = made.golden[-1], answers(graph.path, made.golden[-1:])[0]
    past, total = batch["past_key_values.0.key"].shape[2], batch["attention_mask"].shape[1]
    feeds = {name: array for name, array in batch.items() if not is_past(name)}
    feeds["attention_mask"] = np.pad(batch["attention_mask"], ((0, 0), (0, LENGTH - total)))
    feeds["write_indices"] = np.full(len(batch["input_ids"]), past)
    rest = ((0, 0), (0, 0), (0, LENGTH - past), (0, 0))
    feeds |= {name: np.pad(array, rest, constant_values=9) for name, array in batch.items() if is_past(name)}
    session = ort.InferenceSession(graph.path)
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(names, feeds), strict=True))
    np.testing.assert_allclose(got["logits"], expected["logits"], atol=1e-6)
    np.testing.assert_array_equal(got["present.0.key"][:, :, :total], expected["present.0.key"])
    assert (got["present.0.key"][:, :, total:] == 9).all()


class Fixed:
    """An open session that says that its cache has a fixed length, as an engine does."""

    def __init__(self, session: Any, inputs: tuple[TensorSpec, ...]) -> None:
        self.ran_on, self.inputs, self._session = "an engine", inputs, session

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        assert inputs["past_key_values.0.key"].shape[2] == LENGTH
        answer: dict[str, NDArray[Any]] = self._session.run(inputs)
        return answer

    def close(self) -> None:
        self._session.close()


def test_a_fixed_buffer_is_driven_as_one_that_grows(tiny: MakeTiny, tmp_path: Path) -> None:
    from runtimes._onnxruntime.session import OrtSession

    made = tiny("mistral")
    graph = lowered(made, "fp16", tmp_path)
    session = growing(Fixed(OrtSession(graph.path, rounded=True), graph.spec.inputs))
    assert isinstance(session, GrowingSession)
    assert {item.name: len(item.shape) for item in session.inputs} == {
        item.name: len(item.shape) for item in made.spec.inputs
    }
    got = [session.run(batch) for batch in made.golden]
    assert max(differences(got, answers(graph.path, made.golden), made.golden)) <= 1e-6
    over = without_past(made.spec, *np.ones((2, 1, LENGTH + 1), np.int64))
    with pytest.raises(UsageError, match=f"{LENGTH + 1} positions, the cache holds {LENGTH}"):
        session.run(over)
    with pytest.raises(UsageError, match=r"missing: past_key_values\.1\.key"):
        session.run({name: array for name, array in over.items() if name != "past_key_values.1.key"})
    with pytest.raises(UsageError, match="of several lengths"):
        session.run(over | {"attention_mask": np.ones((1, 3), np.int64)})
    session.close()


@pytest.mark.parametrize("name", ["mistral", "bloom"])
def test_rows_of_several_lengths_are_written_each_at_its_place(name: str, tiny: MakeTiny, tmp_path: Path) -> None:
    """In place, rows left-aligned, behind a sliding window and with ALiBi; the reference aligns them on the right."""
    made = tiny(name)
    graph = lowered(made, "fp32", tmp_path)
    assert made.spec.decoder is not None
    limit = 3 * WINDOW + 2
    decoder = portable_decoder(graph.path, made.spec.decoder, limit=limit, rows=3)
    reference = SessionDecoder(made.eager, made.spec.inputs, made.spec.decoder, limit=limit, rows=3)
    assert not isinstance(decoder, SessionDecoder)
    random = np.random.default_rng(5)
    prompts, lengths = random.integers(3, 96, (3, 2 * WINDOW)), np.array([4, 2 * WINDOW, 7])
    chunk, parts = random.integers(3, 96, (3, WINDOW + 1)), np.array([WINDOW + 1, 2, 5])
    # The last chunk's padding passes the buffer's end.
    steps = [
        (prompts, lengths),
        (prompts[:, :1], np.ones(3, np.int64)),
        (chunk, parts),
        (prompts[:, :1], np.ones(3, np.int64)),
    ]
    for tokens, real in steps:
        np.testing.assert_allclose(decoder.forward(tokens, real), reference.forward(tokens, real), atol=1e-4)
    with pytest.raises(UsageError, match=f"the cache holds {limit}"):
        decoder.forward(chunk, np.array([1, WINDOW, 1]))
    decoder.close()


def test_going_back_forgets_what_was_written(tiny: MakeTiny, tmp_path: Path) -> None:
    made = tiny("mistral")
    decoder = portable_decoder(lowered(made, "fp32", tmp_path).path, made.decoder, limit=32, rows=1)
    tokens, one = np.arange(3, 15)[None], np.array([1])
    decoder.start(1)
    decoder.forward(tokens, np.array([12]))
    expected = decoder.forward(tokens[:, :1], one)
    decoder.rewind(12)
    decoder.forward(tokens[:, 5:9], np.array([4]), every=True)
    decoder.rewind(12)
    np.testing.assert_allclose(decoder.forward(tokens[:, :1], one), expected, atol=1e-6)
    decoder.close()


@pytest.mark.parametrize(("name", "last"), [("mistral", False), ("bloom", True), ("bloom", False)])
def test_in_device_memory_the_logits_are_those_of_the_processor(
    name: str, last: bool, tiny: MakeTiny, tmp_path: Path
) -> None:
    """To the bit, but where ONNX Runtime computes ahead what hangs on the buffers' length: ALiBi's distances do."""
    made, atol = tiny(name, last), 1e-6 if name == "bloom" else 0.0
    pair = Pair(lowered(made, "fp32", tmp_path).path, made.decoder, LENGTH)
    pair.start(3)
    for steps, lengths in ((40, [40, 9, 17]), (1, [1, 1, 1]), (12, [5, 12, 2]), (20, [4, 20, 1]), (1, [1, 1, 1])):
        pair.forward(steps, lengths, atol=atol)
    pair.start(1)
    pair.forward(20, [20], atol=atol)
    pair.rewind(11)
    for steps in (4, 1, 1):
        pair.forward(steps, [steps], atol=atol)
    pair.device.close()
    pair.host.close()
    assert pair.program.memory.held == {}


def test_a_cache_that_others_read_is_refused(tiny: MakeTiny, tmp_path: Path) -> None:
    made = tiny("mistral")
    model = ir.load(made.graph.path)
    past = next(value for value in model.graph.inputs if value.name == "past_key_values.1.key")
    size = ir.node("Shape", [past], name="size")
    size.outputs[0].name, size.outputs[0].type = "size", ir.TensorType(ir.DataType.INT64)
    model.graph.append(size)
    model.graph.outputs.append(size.outputs[0])
    path = tmp_path / "odd.onnx"
    ir.save(model, path)
    odd = ExportedGraph(path, made.spec)
    with pytest.raises(UnsupportedError, match=r"past_key_values\.1\.key") as caught:
        lower_graph(odd, tmp_path / "lowered", "trt", None, STATIC)  # type: ignore[arg-type]
    assert "--kv-cache concat" in caught.value.hint


def test_a_model_without_a_cache_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="--kv-cache is for language models; vit-digits is of kind 'vision'"):
        plan(Request("vit-digits", ("trt-fp16",), options=STATIC))


def cached_attention(**attributes: int) -> ir.Model:
    """One fused attention with a cache, [2, 2, P, 8], and no mask."""
    made = {}
    for name, length in (("query", "s"), ("key", "s"), ("value", "s"), ("past_key", "p"), ("past_value", "p")):
        spoken = name.replace("past_", "past_key_values.0.")
        shape = ir.Shape(["batch", 2, length, 8])
        made[name] = ir.Value(name=spoken, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    neutral: dict[str, float | int] = {"scale": 0.3, "is_causal": 0, "softcap": 0.0}
    neutral |= {"left_window_size": -1, "right_window_size": -1}
    inputs = [made["query"], made["key"], made["value"], None, None, made["past_key"], made["past_value"]]
    node = ir.node("FusedAttention", inputs, neutral | attributes, domain="toolkit", num_outputs=3, name="attention")
    for output, name in zip(node.outputs, ("out", "present.0.key", "present.0.value"), strict=True):
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(["batch", 2, "s" if name == "out" else "t", 8])
    imports = {"": 23, "toolkit": 1}
    graph = ir.Graph(list(made.values()), list(node.outputs), nodes=[node], opset_imports=imports, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"left_window_size": 2, "right_window_size": 1}, {"is_causal": 1, "left_window_size": 3}],
    ids=str,
)
def test_what_no_token_has_written_is_hidden_without_causality_too(attributes: dict[str, int], tmp_path: Path) -> None:
    random, past, new = np.random.default_rng(2), np.array([5, 2]), 3
    canonical, static = cached_attention(**attributes), cached_attention(**attributes)
    attach_function(canonical)
    lower_model(static, cache_length=LENGTH)
    sessions = []
    for name, model in (("canonical", canonical), ("static", static)):
        ir.save(model, tmp_path / f"{name}.onnx")
        sessions.append(ort.InferenceSession(tmp_path / f"{name}.onnx"))
    tokens = {name: random.standard_normal((2, 2, new, 8)).astype(np.float32) for name in ("query", "key", "value")}
    names = ("past_key_values.0.key", "past_key_values.0.value")
    buffers = {name: random.standard_normal((2, 2, LENGTH, 8)).astype(np.float32) for name in names}
    got = sessions[1].run(["out"], {**tokens, **buffers, "write_indices": past})[0]
    for row, length in enumerate(past):
        alone = {name: array[row : row + 1] for name, array in tokens.items()}
        alone |= {name: array[row : row + 1, :, :length] for name, array in buffers.items()}
        np.testing.assert_allclose(got[row : row + 1], sessions[0].run(["out"], alone)[0], atol=3e-6)


@rtx
@pytest.mark.heavy
@pytest.mark.requires_rtx
@pytest.mark.parametrize("scheme", ["fp16", "int4"])
def test_the_builder_takes_it_and_fuses_attention_in_both_profiles(scheme: str, tiny: MakeTiny, tmp_path: Path) -> None:
    graph = lowered(tiny("mistral"), scheme, tmp_path)
    engine = TensorRT("trt-rtx", ("tensorrt_rtx",)).build(graph, TargetOptions(("sm89",), cache="static"))
    built = engine.details["engines"]["sm89"]
    assert built["attentions"] == 2
    # One kernel a layer for several tokens, one for a single token.
    assert built["fused_attentions"] == 4
