"""Precision by layer: each Linear as the recipe names it, in the canonical graph and as the runtimes have it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from decoder_graphs import DECODER, decoder_model, sentences
from onnx_ir.passes.common import ShapeInferencePass
from quantize_graphs import SPEC, images, run, save_exported, sqnr, vision_model

from quantize import quantize
from quantize.nodes import module_path
from runtimes import portable_session
from toolkit import plugins
from toolkit.errors import StageError, UsageError
from toolkit.recipe.changes import parse_changes
from toolkit.recipe.layers import recipe_of_target
from toolkit.target import Target
from toolkit.types import LoweredGraph, ModelSpec, QuantConfig, QuantizedGraph, TargetOptions

FEED = dict(next(images(1, seed=9).batches()))
MIXED = "layers=block.attention.[qk]_proj:int4;block.fc2:fp32;block.fc1:fp16;*:int8"


def recipe(text: str, scheme: str, spec: ModelSpec = SPEC, runtime: str = "ort-cpu") -> QuantConfig:
    return recipe_of_target(parse_changes(text), Target(runtime, scheme), spec)


def quantized(
    scheme: str, text: str, folder: Path, model: ir.Model | None = None, runtime: str = "ort-cpu"
) -> QuantizedGraph:
    graph = save_exported(model or vision_model(), folder / "exported")
    made_by = recipe(text, scheme, runtime=runtime)
    return quantize(graph, scheme, images(4), folder / "quantized", recipe=made_by)


def decoder(scheme: str, text: str, folder: Path, **options: Any) -> QuantizedGraph:
    graph = save_exported(decoder_model(**options), folder / "exported", DECODER)
    return quantize(graph, scheme, sentences(4), folder / "quantized", recipe=recipe(text, scheme, DECODER))


def precisions(path: Path) -> dict[str, str]:
    """What makes the weight of each product, by its module, with the type that it is stored in."""
    found = {}
    for node in ir.load(path).graph:
        if node.op_type not in {"MatMul", "Gemm", "Conv"}:
            continue
        stored = node.inputs[1]
        while (maker := stored.producer()) is not None:
            stored = maker.inputs[0]
        quantizes = node.inputs[0].producer() is not None and node.inputs[0].producer().op_type == "DequantizeLinear"
        found[module_path(node)] = f"{stored.dtype.name.lower()}{'/int8' if quantizes else ''}"
    return found


def named(graph: QuantizedGraph) -> dict[str, int]:
    return {step.what: step.count for step in graph.steps if step.what.startswith("Linears named")}


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_four_precisions_side_by_side(scheme: str, tmp_path: Path) -> None:
    made = quantized(scheme, MIXED, tmp_path)
    onnx.checker.check_model(made.path, full_check=True)
    assert precisions(made.path) == {
        "patch": "int8/int8",
        "block.attention.q_proj": "int4",
        "block.attention.k_proj": "int4",
        "block.attention.v_proj": "int8/int8",
        "block.attention.out_proj": "int8/int8",
        "block.fc1": "float16",
        "block.fc2": "float",
        "classifier": "int8/int8",
    }
    assert named(made) == {
        "Linears named int4": 2,
        "Linears named fp32": 1,
        "Linears named fp16": 1,
        "Linears named int8": 4,
    }
    assert sqnr(run(tmp_path / "exported" / "exported.onnx", FEED)["logits"], run(made.path, FEED)["logits"]) > 15


def test_int8_beside_int4_has_quantized_activations(tmp_path: Path) -> None:
    made = quantized("int4", "layers=patch:int8;*.fc?:int8", tmp_path)
    found = precisions(made.path)
    # The last Linear before an output has 8 bits in the scheme int4 itself, in blocks.
    assert {module: kind for module, kind in found.items() if "attention" not in module} == {
        "patch": "int8/int8",
        "block.fc1": "int8/int8",
        "block.fc2": "int8/int8",
        "classifier": "int8",
    }
    assert set(found.values()) == {"int4", "int8", "int8/int8"}


@pytest.mark.parametrize("kept", ["*.fc?:int4", "*.fc2:int4;block.attention.[qk]_proj:fp16"])
def test_int4_is_calibrated_behind_layers_that_measure_each_tokens_range(kept: str, tmp_path: Path) -> None:
    made = quantized("int8", f"ranges=per-token,layers={kept}", tmp_path)
    found = precisions(made.path)
    assert found["block.fc2"] == "int4" and found["classifier"] == "int8/int8"
    reference = run(tmp_path / "exported" / "exported.onnx", FEED)["logits"]
    with closing(portable_session(made.path)) as session:
        assert sqnr(reference, session.run(FEED)["logits"]) > 15


def test_drift_lies_between_that_of_the_pure_schemes(tmp_path: Path) -> None:
    reference = run(save_exported(vision_model(), tmp_path / "fp32").path, FEED)["logits"]
    texts = {
        "int8": "",
        "some": "layers=*.q_proj:int4;*.v_proj:int4",
        "all": "layers=classifier:int8;patch:int8;*:int4",
    }
    drift = {
        name: sqnr(reference, run(quantized("int8", text, tmp_path / name).path, FEED)["logits"])
        for name, text in texts.items()
    }
    assert drift["int8"] > drift["some"] + 1 > drift["all"] + 2


def test_the_first_match_counts_and_exclude_comes_before_all(tmp_path: Path) -> None:
    made = quantized("int8", "layers=*.q_proj:fp16;*_proj:int4,exclude=*.out_proj", tmp_path)
    found = precisions(made.path)
    assert [found[f"block.attention.{name}_proj"] for name in ("q", "k", "v", "out")] == [
        "float16",
        "int4",
        "int4",
        "float",
    ]
    assert [step.count for step in made.steps if step.what == "kept in fp32: excluded"] == [1]


def test_a_recipe_without_layers_gives_the_schemes_own_bytes(tmp_path: Path) -> None:
    exported = save_exported(vision_model(), tmp_path / "exported")
    plain = quantize(exported, "int8", images(4), tmp_path / "plain", recipe=recipe("", "int8"))
    named_all = quantize(exported, "int8", images(4), tmp_path / "named", recipe=recipe("layers=*:int8", "int8"))
    assert plain.sha256 == named_all.sha256


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("layers=*.fc3:int4", r"'\*\.fc3' matches no Linear", "Did you mean"),
        ("layers=block.atention.q_proj:fp32", "matches no Linear", "block.attention.q_proj"),
        ("exclude=*.fc3", r"'\*\.fc3' matches no Linear", "*.fc1"),
        ("layers=patch:int4", "'patch' is a convolution, which has no int4", "comes first"),
    ],
)
def test_what_a_pattern_cannot_mean_is_refused(text: str, message: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        quantized("int8", text, tmp_path)
    assert hint in caught.value.hint


def test_a_weight_that_float16_does_not_hold_is_refused(tmp_path: Path) -> None:
    model = vision_model()
    value = model.graph.initializers["block.fc1.weight"]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1e6), name=value.name)
    with pytest.raises(StageError, match=r"'block\.fc1\.weight' of module 'block\.fc1' is beyond 65504 in float16"):
        quantized("int8", "layers=block.fc1:fp16", tmp_path, model)


@pytest.mark.parametrize(("scheme", "precision"), [("fp16", "int8"), ("fp8", "int4"), ("bf16", "fp16")])
def test_what_a_scheme_cannot_be_mixed_with_is_refused_without_a_plan_too(
    scheme: str, precision: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{precision}, which cannot stand beside") as caught:
        quantized(scheme, f"layers=*.fc1:{precision}", tmp_path)
    assert "fp32" in caught.value.hint


@pytest.mark.parametrize(("scheme", "stored"), [("fp8", "float8e4m3fn"), ("nvfp4", "float4e2m1")])
def test_float_schemes_leave_what_is_named(scheme: str, stored: str, tmp_path: Path) -> None:
    found = precisions(quantized(scheme, "layers=*.fc1:fp16;*.q_proj:fp32", tmp_path).path)
    assert (found["block.fc1"], found["block.attention.q_proj"]) == ("float16", "float")
    assert found["block.attention.k_proj"].partition("/")[0] == stored


def test_all_in_fp32_is_no_scheme(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="changed no node"):
        quantized("int8-dynamic", "layers=*:fp32", tmp_path)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_decoders_layers_are_blocks(scheme: str, tmp_path: Path) -> None:
    text = "layers=layers.0.mlp.*:int4;layers.1.mlp.*:int8;*.o_proj:fp32;*.q_proj:fp16"
    found = precisions(decoder(scheme, text, tmp_path).path)
    assert {found[f"layers.0.mlp.{name}_proj"] for name in ("gate", "up", "down")} <= {"int4", "int8"}
    assert {found[f"layers.1.mlp.{name}_proj"] for name in ("gate", "up", "down")} == {"int8"}
    assert {found[f"layers.{index}.self_attn.o_proj"] for index in range(2)} == {"float"}
    assert {found[f"layers.{index}.self_attn.q_proj"] for index in range(2)} == {"float16"}
    assert found["lm_head"] == "int8"


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(("precision", "stored"), [("fp16", "float16"), ("fp32", "float"), ("int4", "int8")])
def test_a_table_and_its_tied_head_are_one(precision: str, stored: str, copied: bool, tmp_path: Path) -> None:
    """In the scheme int4 a table has 8 bits: the lookups and a tied head are the most sensitive part."""
    made = decoder("int8", f"layers=lm_head:{precision}", tmp_path, copied=copied)
    model = ir.load(made.path)
    (lookup,) = [node for node in model.graph if node.op_type == "Gather"]
    maker = lookup.inputs[0].producer()
    assert (maker.inputs[0] if maker else lookup.inputs[0]).dtype.name.lower() == stored
    assert precisions(made.path)["lm_head"] == stored
    assert named(made) == {f"Linears named {precision}": 1}
    tables = [value for value in model.graph.initializers.values() if value.shape and 96 in value.shape[:]]
    assert sum(value.shape.numpy() == (96, 64) for value in tables) == 1


def test_excluding_a_tied_head_leaves_its_table(tmp_path: Path) -> None:
    assert precisions(decoder("int4", "exclude=lm_head", tmp_path).path)["lm_head"] == "float"


def test_half_precision_leaves_named_linears_in_fp32(tmp_path: Path) -> None:
    made = quantized("fp16", "layers=block.fc1:fp32", tmp_path)
    found = precisions(made.path)
    assert {module for module, kind in found.items() if kind == "float"} == {"block.fc1"}
    (kept,) = [step for step in made.steps if step.what == "kept in fp32: recipe"]
    assert kept.reason == "MatMul of block.fc1: named fp32"


def lowered(runtime: str, text: str, folder: Path, model: ir.Model | None = None) -> LoweredGraph:
    made = quantized("int8", text, folder, model, runtime)
    return plugins.runtime(runtime).lower(made, folder / "lowered", lambda: images(4))


def test_onnx_runtime_runs_each_precision_in_its_own_kernel(tmp_path: Path) -> None:
    made = lowered("ort-cpu", MIXED, tmp_path)
    counts = Counter(node.op_type for node in ir.load(made.path).graph)
    blocks = counts["MatMulNBits"] + counts["BlockLinear"]
    int8 = sum(count for name, count in counts.items() if name.startswith("Int8Linear"))
    assert (blocks, int8, counts["MatMul"] + counts["Gemm"], counts["Cast"]) == (2, 3, 2, 1)
    expected = run(tmp_path / "quantized" / "model.onnx", FEED)["logits"]
    # The kernel of blocks rounds its activations to int8, too.
    assert sqnr(expected, portable_session(made.path).run(FEED)["logits"]) > 30


def shaped() -> ir.Model:
    model = vision_model()
    ShapeInferencePass()(model)
    return model


IN_TENSORRT = "layers=block.fc2:fp32;block.attention.q_proj:int4;block.fc1:fp16,exclude=*.out_proj"


def test_tensorrt_computes_what_is_named_fp32_in_fp32_and_what_is_excluded_in_half(tmp_path: Path) -> None:
    model = ir.load(lowered("trt-rtx", IN_TENSORRT, tmp_path, shaped()).path)
    reads = {module_path(node): node.inputs[0].dtype for node in model.graph if node.op_type in {"MatMul", "Gemm"}}
    assert {module for module, dtype in reads.items() if dtype == ir.DataType.FLOAT} == {"block.fc2"}
    assert reads["block.attention.out_proj"] == reads["block.fc1"] == ir.DataType.FLOAT16


@pytest.mark.requires_rtx
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (pip install 'tensorrt-rtx-cu13>=1.7')",
)
def test_tensorrt_compiles_the_mixture(tmp_path: Path) -> None:
    made = plugins.runtime("trt-rtx").build(
        lowered("trt-rtx", IN_TENSORRT, tmp_path, shaped()), TargetOptions(("sm89",))
    )
    assert [file.name for file in made.files if file.suffix == ".plan"] == ["engine-sm89.plan"]


def test_the_config_says_what_is_measured() -> None:
    assert recipe("layers=*.fc1:int4", "int8").measured_by == "minmax, hessian"
    assert recipe("layers=*.fc1:int4", "int8-dynamic").measured_by == "hessian"
    assert recipe("layers=*.fc1:fp32", "int8-dynamic").measured_by == ""
    assert recipe("layers=*.fc1:int4,block-size=64,rounding=awq", "int8").others["int4"].block_size == 64
    assert replace(recipe("", "int8"), layers=()).others == {}
