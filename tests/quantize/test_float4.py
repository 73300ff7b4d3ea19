"""float4e2m1 in blocks of 16: rounding against a table, the choice of scales, and the nvfp4 scheme on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from quantize_graphs import SPEC, Builder, by_type, graph_input, images, run, save_exported, sqnr, vision_model

from quantize import quantize
from quantize.float4 import BLOCK, dequantize, tensor_scale
from quantize.float4 import quantize as to_float4
from quantize.schemes.nvfp4 import SCHEME
from runtimes import portable_session
from toolkit.errors import StageError, UsageError
from toolkit.recipe.changes import parse_changes, require_taken, tuned

FOUR, EIGHT = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

WEIGHTS = arrays(np.float32, (2 * BLOCK, 3), elements=st.floats(-50, 50, width=32))


def errors(weight: np.ndarray, back: np.ndarray) -> np.ndarray:
    """The squared error of each block, [K / 16, N]."""
    return np.square(weight - back).reshape(-1, BLOCK, weight.shape[1]).sum(axis=1)


def plainly(weight: np.ndarray) -> np.ndarray:
    """What NVFP4 says, number by number: a block's largest becomes 6, its scale E4M3, ties to the even code."""
    blocks = weight.reshape(-1, BLOCK, weight.shape[1])
    tensor = float(tensor_scale(float(np.abs(weight).max())))
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 6 / tensor
    stored = np.maximum(scales.astype(EIGHT.numpy()).astype(np.float32), 2.0**-9) * np.float32(tensor)
    steps = np.clip(blocks / stored, -6, 6)
    distances = np.abs(np.abs(steps)[..., None] - np.array(NUMBERS)) + np.arange(8) % 2 * 1e-9
    return (np.sign(steps) * np.array(NUMBERS)[distances.argmin(axis=-1)] * stored).reshape(weight.shape)


@given(WEIGHTS)
@settings(max_examples=60)
def test_no_block_is_worse_than_the_plain_rule_makes_it(weight: np.ndarray) -> None:
    made = to_float4(weight)
    assert (made.numbers.dtype, made.scale.dtype) == (FOUR.numpy(), EIGHT.numpy())
    assert made.scale.shape == (2, 3)
    found, plain = errors(weight, dequantize(made)), errors(weight, plainly(weight))
    assert (found <= plain * (1 + 1e-4) + 1e-10 * np.abs(weight).max() ** 2).all()


@given(st.integers(0, 255), st.floats(2.0**-10, 2.0**10))
def test_numbers_of_the_grid_are_kept(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    grid = np.concatenate([NUMBERS, np.negative(NUMBERS)])
    weight = rng.choice(grid, (BLOCK, 2)).astype(np.float32)
    weight[0] = 6
    scaled = weight * np.float32(size)
    np.testing.assert_allclose(dequantize(to_float4(scaled)), scaled, rtol=1e-6)


def test_a_weight_of_zeros_stays_zero() -> None:
    assert not dequantize(to_float4(np.zeros((BLOCK, 2), np.float32))).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_scale(bad: float) -> None:
    weight = np.ones((BLOCK, 2), np.float32)
    weight[3, 1] = bad
    with pytest.raises(ValueError, match="finite"):
        to_float4(weight)


def test_weights_and_activations_are_float4_and_the_last_linear_fp8() -> None:
    model = vision_model()
    steps = {step.what: step.count for step in SCHEME.apply(model, SPEC, images(4), {})}
    assert (steps["nvfp4 Linears"], steps["nvfp4 activations"], steps["fp8 Linears"]) == (6, 4, 1)
    *blocks, head = by_type(model, "MatMul")
    for node in blocks:
        for value, axis in zip(node.inputs, (2, 0), strict=True):
            outer = value.producer()
            assert (outer.op_type, outer.inputs[0].dtype) == ("DequantizeLinear", FOUR)
            assert (outer.attributes.get_int("axis"), outer.attributes.get_int("block_size")) == (axis, BLOCK)
            inner = outer.inputs[1].producer()
            assert (inner.op_type, inner.inputs[0].dtype) == ("DequantizeLinear", EIGHT)
            assert inner.inputs[1].const_value.numpy().shape == ()
    assert head.inputs[0].producer().op_type != "DequantizeLinear"
    assert head.inputs[1].producer().inputs[0].dtype == EIGHT


def test_a_decoder_has_float4_weights_only_and_needs_no_calibration() -> None:
    spec = replace(SPEC, kind="decoder")
    model = vision_model()
    SCHEME.apply(model, spec, None, {}, SCHEME.recipe(spec))
    assert by_type(model, "QuantizeLinear") == []
    assert sum(node.inputs[0].dtype == FOUR for node in by_type(model, "DequantizeLinear")) == 6


def test_the_written_graph_is_valid_runs_emulated_and_stays_near(tmp_path) -> None:
    exported = save_exported(vision_model(), tmp_path / "exported")
    made = quantize(exported, "nvfp4", images(4), tmp_path / "out")
    onnx.checker.check_model(made.path)
    feed = dict(next(images(1, seed=9).batches()))
    session = portable_session(made.path)
    assert session.ran_on.endswith("CPUExecutionProvider, float4e2m1 emulated in float32")
    assert 10 < sqnr(run(exported.path, feed)["logits"], session.run(feed)["logits"]) < 60


def test_inputs_that_16_does_not_divide_stay_as_they_are() -> None:
    b = Builder()
    x = graph_input("x", ["batch", 24])
    hidden = b.op("Gelu", b.op("MatMul", x, b.random("odd.weight", 24, 32), module="odd"))
    hidden = b.op("Gelu", b.op("MatMul", hidden, b.random("even.weight", 32, 32), module="even"))
    model = b.model([x], {"y": b.op("MatMul", hidden, b.random("head.weight", 32, 4), module="head")})
    spec = replace(SPEC, kind="decoder")
    steps = {step.what: step.count for step in SCHEME.apply(model, spec, None, {})}
    assert (steps["nvfp4 Linears"], steps["kept in fp32: no block"]) == (1, 1)
    assert by_type(model, "MatMul")[0].inputs[1].name == "odd.weight"


def test_an_older_opset_and_a_missing_calibration_are_usage_errors(tmp_path) -> None:
    old = vision_model()
    old.graph.opset_imports[""] = 21
    with pytest.raises(UsageError, match="needs ONNX opset 23"):
        SCHEME.apply(old, SPEC, images(1), {})
    with pytest.raises(UsageError, match="no calibration"):
        SCHEME.apply(vision_model(), SPEC, None, {})


def test_nan_in_a_weight_names_the_module() -> None:
    model = vision_model()
    model.graph.initializers["block.fc2.weight"].const_value.numpy()[3, 3] = np.nan
    with pytest.raises(StageError, match=r"block\.fc2\.weight.*block\.fc2"):
        SCHEME.apply(model, replace(SPEC, kind="decoder"), None, {})


def test_only_modules_can_be_excluded() -> None:
    assert tuned(parse_changes("exclude=*.fc1"), SCHEME.config).exclude == ("*.fc1",)
    with pytest.raises(UsageError, match="no 'block-size'"):
        require_taken(parse_changes("block-size=32"), [{"nvfp4": SCHEME.config}])
