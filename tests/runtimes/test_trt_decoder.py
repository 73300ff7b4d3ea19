"""Language models through TensorRT: the cache outside the node, profiles for prompt and decoding, int4 in blocks."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tiny_decoders import MakeTiny

from quantize import quantize
from runtimes import portable_session
from runtimes._tensorrt.lowering import lower_graph
from runtimes._tensorrt.profiles import profiles_of
from runtimes._tensorrt.runtime import TensorRT
from toolkit.types import DEFAULT_OPTIONS, Calibration, ExportedGraph, LoweredGraph, ModelSpec, TargetOptions, Tensors

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


@dataclass(frozen=True)
class Exported:
    """A tiny Mistral, its golden inputs, and its canonical graph's own answers."""

    spec: ModelSpec
    graph: ExportedGraph
    golden: list[Tensors]
    expected: list[NDArray[Any]]


def answers(path: Path, golden: list[Tensors]) -> list[NDArray[Any]]:
    session = portable_session(path)
    try:
        return [session.run(batch)["logits"] for batch in golden]
    finally:
        session.close()


def exported_from(tiny: MakeTiny) -> Exported:
    made = tiny("mistral")
    whole = [batch for batch in made.golden if batch["attention_mask"].all()]
    return Exported(made.spec, made.graph, whole, answers(made.graph.path, whole))


@pytest.fixture(scope="module")
def exported(tiny: MakeTiny) -> Exported:
    return exported_from(tiny)


def lowered(exported: Exported, scheme: str, folder: Path, options: TargetOptions = DEFAULT_OPTIONS) -> LoweredGraph:
    calibration = Calibration(lambda: iter(exported.golden), len(exported.golden), "golden inputs")
    quantized = quantize(exported.graph, scheme, calibration, folder / "quantized", packed={})
    return lower_graph(quantized, folder / "lowered", "trt", lambda: calibration, options)


def test_the_cache_is_joined_before_attention_and_windows_hold_behind_a_past(
    exported: Exported, tmp_path: Path
) -> None:
    graph = lowered(exported, "fp32", tmp_path)
    model = ir.load(graph.path)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert len(attentions) == 2
    assert all(len(node.outputs) == 1 and not node.attributes.get_int("is_causal", 0) for node in attentions)
    assert [value.name for value in model.graph.outputs][1:3] == ["present.0.key", "present.0.value"]
    for got, expected in zip(answers(graph.path, exported.golden), exported.expected, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_int4_weights_stay_int4_beside_half_precision(exported: Exported, tmp_path: Path) -> None:
    graph = lowered(exported, "int4", tmp_path)
    model = ir.load(graph.path)
    blocks = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    dtypes = [node.inputs[0].dtype for node in blocks if node.inputs[0] is not None]
    assert dtypes.count(ir.DataType.INT4) == 14
    halves = [node for node in blocks if node.outputs[0].dtype == ir.DataType.FLOAT16]
    assert len(halves) >= 12
    # Positions times frequencies have no bound that could be proven; they were measured.
    assert not [step for step in graph.steps if step.what.startswith("kept in fp32: range")]
    heavy = [node for node in model.graph if node.op_type in {"Attention", "MatMul", "RotaryEmbedding"}]
    assert {node.outputs[0].dtype for node in heavy} == {ir.DataType.FLOAT16}
    for got, expected in zip(answers(graph.path, exported.golden), exported.expected, strict=True):
        noise = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert 0 < noise < 0.3


def test_profiles_cover_prompts_chunks_and_single_tokens(exported: Exported) -> None:
    prompt, chunk, decode = profiles_of(exported.spec)
    assert prompt["past_key_values.0.key"] == ((1, 2, 0, 16), (1, 2, 0, 16), (8, 2, 0, 16))
    assert decode["input_ids"] == ((1, 1), (1, 1), (8, 1))
    for profile in (prompt, chunk, decode):
        sizes = zip(profile["input_ids"], profile["past_key_values.1.value"], profile["attention_mask"], strict=True)
        assert all(ids[1] + past[2] == mask[1] for ids, past, mask in sizes)
    assert chunk["past_key_values.0.key"][0][2] == 1
    assert decode["attention_mask"][2][1] == 64


@rtx
@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["fp16", "int4", "int8"])
def test_the_builder_takes_a_language_model(scheme: str, exported: Exported, tmp_path: Path) -> None:
    engine = TensorRT("trt-rtx", ("tensorrt_rtx",)).build(lowered(exported, scheme, tmp_path))
    assert engine.status in ("built", "executed")
    built = engine.details["engines"]["sm89"]
    assert built["attentions"] == 2
    # One kernel a layer in each of the three profiles.
    assert built["fused_attentions"] == 6
