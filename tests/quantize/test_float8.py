"""float8e4m3fn: rounding against a table of its numbers, and the fp8 scheme on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantize_graphs import SPEC, by_type, images, run, save_exported, sqnr, vision_model

from quantize import quantize
from quantize.arithmetic import dequantize, round_e4m3, symmetric_scale
from quantize.schemes.fp8 import SCHEME
from toolkit.errors import UsageError
from toolkit.recipe.changes import parse_changes, tuned

EIGHT = ir.DataType.FLOAT8E4M3FN
NUMBERS = [
    (mantissa / 8) * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    for exponent in range(16)
    for mantissa in range(8)
][:-1]
"""Every number from 0 to 448 by its code; the last code is NaN."""


def nearest(number: float) -> float:
    """By definition: the closest number, of two as close the one with the even code, beyond the last the last."""
    distances = [abs(min(abs(number), 448.0) - each) for each in NUMBERS]
    code = min(range(len(NUMBERS)), key=lambda index: (distances[index], index % 2))
    return float(np.copysign(NUMBERS[code], number))


def test_the_table_is_the_format() -> None:
    assert (NUMBERS[1], NUMBERS[8], NUMBERS[-1]) == (2.0**-9, 2.0**-6, 448.0)


@given(st.floats(-1000, 1000, width=32))
def test_rounds_to_the_nearest_and_saturates(number: float) -> None:
    assert float(round_e4m3(np.float32([number]), np.float32(1))[0]) == nearest(number)


@given(st.integers(0, len(NUMBERS) - 2))
def test_ties_go_to_the_even_code(code: int) -> None:
    middle = np.float32([(NUMBERS[code] + NUMBERS[code + 1]) / 2])
    even = NUMBERS[code + code % 2]
    assert float(round_e4m3(middle, np.float32(1))[0]) == even


@given(st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6))
def test_a_channel_keeps_its_largest_and_errs_by_a_sixteenth_at_most(numbers: list[float]) -> None:
    weight = np.float32(numbers).reshape(2, 3)
    scale = symmetric_scale(np.abs(weight).max(axis=1), 448)
    back = dequantize(round_e4m3(weight, scale, 0), scale, 0)
    normal = np.abs(weight) >= scale[:, None] * 2.0**-6
    assert (np.abs(back - weight)[normal] <= np.abs(weight[normal]) / 15.9).all()
    np.testing.assert_allclose(np.abs(back).max(axis=1), np.abs(weight).max(axis=1), rtol=1e-6, atol=1e-30)


def test_linears_and_the_patch_conv_read_fp8_per_channel() -> None:
    model = vision_model()
    steps = {step.what: step.count for step in SCHEME.apply(model, SPEC, images(4), {})}
    assert (steps["fp8 Linears"], steps["fp8 patch convolutions"], steps["quantized activations"]) == (7, 1, 6)
    for node in (node for node in model.graph if node.op_type in ("MatMul", "Gemm", "Conv")):
        activation, weight = (value.producer() for value in node.inputs[:2])
        assert [each.op_type for each in (activation, weight)] == ["DequantizeLinear"] * 2
        assert {each.inputs[index].dtype for each in (activation, weight) for index in (0, 2)} == {EIGHT}
        assert activation.inputs[1].const_value.numpy().shape == ()
        axis = weight.attributes.get_int("axis")
        assert weight.inputs[1].const_value.numpy().shape == (weight.inputs[0].shape[axis],)
    assert not any(
        zero.const_value.numpy().astype(np.float32) for zero in [by_type(model, "QuantizeLinear")[0].inputs[2]]
    )


def test_the_written_graph_is_valid_runs_and_stays_near(tmp_path) -> None:
    exported = save_exported(vision_model(), tmp_path / "exported")
    made = quantize(exported, "fp8", images(4), tmp_path / "out")
    onnx.checker.check_model(made.path, full_check=True)
    feed = dict(next(images(1, seed=9).batches()))
    assert sqnr(run(exported.path, feed)["logits"], run(made.path, feed)["logits"]) > 20


def test_without_calibration_is_a_usage_error(tmp_path) -> None:
    exported = save_exported(vision_model(), tmp_path)
    with pytest.raises(UsageError, match="no calibration"):
        quantize(exported, "fp8", None, tmp_path / "out")


def test_methods_that_count_on_equal_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="'mse' calibration is made for steps of one size"):
        SCHEME.apply(vision_model(), SPEC, images(2), {}, replace(SCHEME.recipe(SPEC), calibration="mse"))


def test_excluded_modules_stay_fp32() -> None:
    model = vision_model()
    recipe = tuned(parse_changes("exclude=*.fc?,calibration=percentile"), SCHEME.recipe(SPEC))
    steps = SCHEME.apply(model, SPEC, images(2), {}, recipe)
    kept = [node.inputs[1].name for node in by_type(model, "MatMul") if node.inputs[1].producer() is None]
    assert kept == ["block.fc1.weight", "block.fc2.weight"]
    assert any(step.what == "percentile calibration" for step in steps)
