"""Lookup tables for weights: k-means against brute force and scikit-learn, standard ONNX, groups, data, refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from decoder_graphs import DECODER, decoder_model, sentences
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_graphs import SPEC, by_type, images, run, save_exported, sqnr, vision_model
from sklearn.cluster import KMeans

from quantize import quantize
from quantize.gptq import Hessian, in_turn, output_error
from quantize.palettes import codes, fit, look_up, nearest_in
from quantize.palettized import _dividing
from quantize.schemes.int8 import SCHEME as INT8
from quantize.schemes.palettized import SCHEME
from toolkit.errors import StageError
from toolkit.types import QuantConfig, Step

RNG = np.random.default_rng(0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=5, max_size=9), st.integers(1, 2))
def test_the_tables_are_the_best_there_are(values: list[int], bits: int) -> None:
    weight = np.array(values, np.float32)[:, None] / 16
    palettes = fit(weight, bits, 1, axis=1)
    error = np.square(look_up(codes(weight, palettes), palettes) - weight).sum()
    assert error <= _least_error(np.sort(weight[:, 0]), 1 << bits) + 1e-3


def _least_error(values: np.ndarray, entries: int) -> float:
    cuts = combinations(range(1, len(values)), min(entries, len(values)) - 1)
    return min(sum(float(np.square(part - part.mean()).sum()) for part in np.split(values, cut)) for cut in cuts)


def test_large_weights_take_tables_no_worse_than_scikit_learns() -> None:
    weight = RNG.standard_t(5, size=(64, 48)).astype(np.float32)
    palettes = fit(weight, 4, 48, axis=1)
    ours = np.square(look_up(codes(weight, palettes), palettes) - weight).sum()
    theirs = KMeans(16, n_init=4, random_state=0).fit(weight.reshape(-1, 1)).inertia_
    assert ours <= theirs * 1.01


@pytest.mark.parametrize("axis", [0, 1])
def test_each_group_of_channels_has_its_own_table(axis: int) -> None:
    weight = np.moveaxis(RNG.normal(size=(8, 32)) * np.repeat([1, 100], 4)[:, None], 0, axis).astype(np.float32)
    palettes = fit(weight, 4, 4, axis)
    assert palettes.tables.shape == (2, 16)
    assert palettes.bits == 4
    assert (np.diff(palettes.tables) >= 0).all()
    np.testing.assert_array_equal(palettes.tables, palettes.tables.astype(np.float16))
    whole = fit(weight, 4, 8, axis)
    small = np.take(weight, range(4), axis)
    errors = [np.square(np.take(look_up(codes(weight, each), each), range(4), axis) - small).sum()
              for each in (palettes, whole)]  # fmt: skip
    assert errors[0] < errors[1] / 100


def test_importance_moves_entries_to_the_channels_that_count() -> None:
    weight = np.concatenate([RNG.normal(size=(16, 8)), RNG.normal(size=(16, 8)) + 10]).astype(np.float32)
    importance = np.repeat([1.0, 1e-6], 16).astype(np.float32)
    errors = []
    for given_importance in (importance, None):
        palettes = fit(weight, 2, 8, 1, given_importance)
        errors.append(np.square(look_up(codes(weight, palettes), palettes) - weight)[:16].sum())
    assert errors[0] < errors[1] / 1.5


def test_constant_weights_and_zeros_are_exact() -> None:
    for weight in (np.zeros((8, 4), np.float32), np.full((8, 4), 0.5, np.float32)):
        for bits in (4, 8):
            palettes = fit(weight, bits, 2, 1)
            np.testing.assert_array_equal(look_up(codes(weight, palettes), palettes), weight)


def test_eight_bits_are_finer_than_four() -> None:
    weight = RNG.normal(size=(64, 64)).astype(np.float32)
    errors = [np.square(look_up(codes(weight, each), each) - weight).mean() for each in
              (fit(weight, bits, 64, 1) for bits in (4, 8))]  # fmt: skip
    assert errors[1] < errors[0] / 100


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e6])
def test_what_float16_does_not_hold_is_refused(odd: float) -> None:
    with pytest.raises(ValueError, match="beyond float16"):
        fit(np.array([[1.0, odd]], np.float32), 4, 1, 1)


def test_channels_are_divided_into_equal_groups() -> None:
    assert [_dividing(count, 16) for count in (384, 30, 10, 17, 9, 1)] == [16, 15, 10, 17, 9, 1]


def test_indices_that_make_good_their_errors_are_better_on_what_was_seen() -> None:
    rows = RNG.normal(size=(256, 32)) @ RNG.normal(size=(32, 32))
    hessian = Hessian(32)
    hessian.add(rows)
    weight = RNG.normal(size=(32, 16)).astype(np.float32)
    palettes = fit(weight, 4, 8, 1, hessian.mean_square)
    plain = look_up(codes(weight, palettes), palettes)
    careful = look_up(in_turn(weight, hessian, nearest_in(palettes, 16), np.uint8), palettes)
    assert output_error(weight, careful, hessian)[0] < 0.75 * output_error(weight, plain, hessian)[0]


def _found(steps: tuple[Step, ...]) -> dict[str, int]:
    return {step.what: step.count for step in steps}


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_the_written_graph_is_standard_runs_and_stays_near(rounding: str, tmp_path: Path) -> None:
    exported = save_exported(vision_model(), tmp_path / "exported")
    made = quantize(exported, "palettized", images(8), tmp_path / "out", recipe=_recipe(rounding=rounding))
    onnx.checker.check_model(made.path, full_check=True)
    model = ir.load(made.path)
    kinds = {node.op_type: node for node in model.graph if node.op_type in ("Cast", "Gather")}
    assert kinds["Cast"].inputs[0].dtype in (ir.DataType.UINT4, ir.DataType.UINT8)
    assert len(by_type(model, "Gather")) == 7
    assert len(by_type(model, "Conv")) == 1
    assert _found(made.steps)["4-bit palettized Linears"] == 6
    assert _found(made.steps)["8-bit palettized Linears"] == 1
    feed = next(images(1, seed=3).batches())
    assert sqnr(run(exported.path, feed)["logits"], run(made.path, feed)["logits"]) > (20 if rounding == "gptq" else 15)


def test_a_decoders_table_is_palettized_once_for_lookups_and_head(tmp_path: Path) -> None:
    exported = save_exported(decoder_model(), tmp_path / "exported", DECODER)
    made = quantize(exported, "palettized", sentences(), tmp_path / "out", recipe=SCHEME.recipe(DECODER))
    model = ir.load(made.path)
    assert _found(made.steps)["8-bit palettized embedding tables with tied heads"] == 1
    assert _found(made.steps)["4-bit palettized Linears"] == 14
    onnx.checker.check_model(made.path, full_check=True)
    feed = dict(next(sentences(1, seed=99).batches()))
    assert sqnr(run(exported.path, feed)["logits"], run(made.path, feed)["logits"]) > 15
    (table,) = [node for node in by_type(model, "Gather") if "embed" in str(node.outputs[0].name)
                and str(node.outputs[0].name).endswith("looked_up")]  # fmt: skip
    assert {use.node.op_type for use in table.outputs[0].uses()} == {"Gather", "Transpose"}


def test_excluded_linears_stay_as_they_are(tmp_path: Path) -> None:
    exported = save_exported(vision_model(), tmp_path / "exported")
    recipe = _recipe(exclude=("block.fc*",), rounding="nearest")
    made = quantize(exported, "palettized", None, tmp_path / "out", recipe=recipe)
    assert _found(made.steps)["4-bit palettized Linears"] == 4
    assert {"block.fc1.weight", "block.fc2.weight"} <= set(ir.load(made.path).graph.initializers)


def test_layers_may_be_kept_in_float(tmp_path: Path) -> None:
    exported = save_exported(vision_model(), tmp_path / "exported")
    recipe = _recipe(layers=(("block.fc1", "fp32"), ("block.fc2", "fp16")), rounding="nearest")
    made = quantize(exported, "palettized", None, tmp_path / "out", recipe=recipe)
    assert _found(made.steps)["4-bit palettized Linears"] == 4
    assert {"block.fc1.weight", "block.fc2.weight_fp16"} <= set(ir.load(made.path).graph.initializers)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = vision_model()
    weight = model.graph.initializers["block.fc1.weight"]
    weight.const_value = ir.tensor(np.full(weight.shape, np.inf, np.float32), name=weight.name)
    exported = save_exported(model, tmp_path / "exported")
    with pytest.raises(StageError, match=r"'block\.fc1\.weight'"):
        quantize(exported, "palettized", None, tmp_path / "out", recipe=_recipe(rounding="nearest"))


def test_int8_of_the_weights_alone_needs_no_data(tmp_path: Path) -> None:
    exported = save_exported(vision_model(), tmp_path / "exported")
    made = quantize(exported, "int8", None, tmp_path / "out", recipe=INT8.weight_only(SPEC))
    model = ir.load(made.path)
    assert not by_type(model, "QuantizeLinear")
    assert _found(made.steps) == {"int8 Linears": 7}
    assert "patch.weight" in model.graph.initializers
    feed = next(images(1, seed=3).batches())
    assert sqnr(run(exported.path, feed)["logits"], run(made.path, feed)["logits"]) > 30


@pytest.mark.parametrize(
    ("layers", "convolutions", "linears"),
    [((("*.fc1", "fp32"),), 0, 6), ((("patch", "int8"), ("*.fc1", "fp32")), 1, 6), ((("*", "int8"),), 1, 7)],
)
def test_the_weights_alone_are_those_of_a_convolution_only_where_it_is_named(
    layers: tuple[tuple[str, str], ...], convolutions: int, linears: int, tmp_path: Path
) -> None:
    exported = save_exported(vision_model(), tmp_path / "exported")
    recipe = replace(INT8.weight_only(SPEC), layers=layers)
    found = _found(quantize(exported, "int8", None, tmp_path / "out", recipe=recipe).steps)
    assert found.get("int8 patch convolutions", 0) == convolutions
    assert found["int8 Linears"] == linears


def _recipe(**changes: object) -> QuantConfig:
    return replace(SCHEME.recipe(SPEC), **changes)  # type: ignore[arg-type]
