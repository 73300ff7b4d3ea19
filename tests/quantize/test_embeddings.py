"""Embedding tables of encoders in int8, next to what a scheme does with the Linears."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantize_graphs import Builder, by_type, graph_input, run, save_exported

from quantize.embeddings import quantize_embeddings
from quantize.schemes.int8 import SCHEME
from quantize.stage import apply_scheme
from toolkit.errors import StageError, UsageError
from toolkit.hashing import data_path
from toolkit.types import Calibration, Dim, ModelSpec, TensorSpec

ROWS, WIDTH = 300, 384
IDS = np.array([[0, 1, 299, 7], [5, 5, 3, 2]])
SPEC = ModelSpec(
    name="tiny-text",
    family="test",
    kind="encoder",
    task="raw",
    source="test:tiny-text",
    architecture="Tiny",
    inputs=(TensorSpec("ids", "int64", ("batch", "sequence")),),
    outputs=(TensorSpec("y", "float32", ("batch", "sequence", 8)),),
    dims={"batch": Dim(1, 2, 8), "sequence": Dim(1, 4, 8)},
)
RECIPE = replace(SCHEME.recipe(SPEC), embeddings="int8")


def text_model(width: int = WIDTH, *, tied: bool = False, transposed: bool = False) -> ir.Model:
    """Words of `width` and a table of two types, then a Linear, or a head that multiplies with the words."""
    b = Builder(2)
    ids = graph_input("ids", ["batch", "sequence"], ir.DataType.INT64)
    words, types = b.random("words.weight", ROWS, width, scale=1.0), b.random("types.weight", 2, width)
    x = b.op("Gather", words, ids, module="words", axis=0)
    kind = b.op("Gather", types, b.weight("type", np.array([1])), module="types", axis=0)
    x.shape, kind.shape = ir.Shape(["batch", "sequence", width]), ir.Shape([1, width])
    x = b.op("Add", x, kind, module="sum")
    x.shape = ir.Shape(["batch", "sequence", width])
    if not tied:
        return b.model([ids], {"y": b.linear(x, "head", width, 8)}, y=["batch", "sequence", 8])
    if transposed:
        weight = b.op("Transpose", words, module="head", perm=[1, 0])
        weight.shape = ir.Shape([width, ROWS])
    else:
        weight = b.weight("head.weight", np.ascontiguousarray(words.const_value.numpy().T))
    return b.model([ids], {"y": b.op("MatMul", x, weight, module="head")}, y=["batch", "sequence", ROWS])


def numbers(model: ir.Model, name: str) -> Any:
    return model.graph.initializers[name].const_value.numpy()


def looked_up(model: ir.Model) -> Any:
    """What the first lookup answers."""
    value = by_type(model, "Gather")[0].outputs[0]
    model.graph.outputs.append(value)
    return run(model, {"ids": IDS})[value.name]


def ids_data() -> Calibration:
    return Calibration(lambda: iter([{"ids": IDS}, {"ids": (IDS[::-1] + 20) % ROWS}]), 2, "ids")


@pytest.mark.parametrize(("width", "block"), [(384, 128), (64, 64), (48, 16), (80, 16)])
def test_rows_are_those_of_the_table_rounded_in_blocks(width: int, block: int) -> None:
    model = text_model(width)
    table = numbers(model, "words.weight").copy()
    (step,) = quantize_embeddings(model, RECIPE)
    assert (step.what, step.count, step.reason) == ("int8 embedding tables", 1, f"block {block}, nearest")
    blocks = table.reshape(ROWS, -1, block)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    expected = (np.rint(blocks / scale) * scale).reshape(ROWS, width)[IDS]
    np.testing.assert_allclose(looked_up(model), expected, rtol=0, atol=1e-6)


def test_small_tables_stay_as_they_are() -> None:
    model = text_model()
    quantize_embeddings(model, RECIPE)
    assert "types.weight" in model.graph.initializers
    assert "words.weight" not in model.graph.initializers


def test_a_recipe_sets_the_block_and_leaves_modules_out() -> None:
    (step,) = quantize_embeddings(text_model(), replace(RECIPE, block_size=32))
    assert step.reason == "block 32, nearest"
    assert quantize_embeddings(text_model(), replace(RECIPE, exclude=("wor*",))) == []


def test_a_width_that_no_block_divides_is_told() -> None:
    model = text_model(72 + 4)
    (step,) = quantize_embeddings(model, RECIPE)
    assert (step.what, step.count) == ("embedding tables kept in fp32", 1)
    assert "words.weight" in step.reason


def test_nothing_to_look_up_is_a_usage_error() -> None:
    model = text_model()
    quantize_embeddings(model, RECIPE)
    with pytest.raises(UsageError, match="looks nothing up"):
        quantize_embeddings(model, RECIPE)


def test_a_table_that_is_not_finite_is_named() -> None:
    model = text_model()
    numbers(model, "words.weight")[3, 3] = np.nan
    with pytest.raises(StageError, match=r"words\.weight.*NaN"):
        quantize_embeddings(model, RECIPE)
        looked_up(model)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_tied_head_stays_right(transposed: bool, tmp_path) -> None:
    """A head that reads the table reads its integers; one with a copy of its own is a Linear like any other."""
    model = text_model(tied=True, transposed=transposed)
    exact = run(model, {"ids": IDS})["y"]
    exported = save_exported(model, tmp_path, SPEC)
    made = apply_scheme(exported, "int8", ids_data(), tmp_path / "out", {}, RECIPE)
    found = {step.what: step.count for step in made.steps}
    assert (found["int8 embedding tables"], found["int8 Linears"]) == (1, 0 if transposed else 1)
    answer = run(made.path, {"ids": IDS})["y"]
    assert np.linalg.norm(answer - exact) < 0.02 * np.linalg.norm(exact)
    floats = [value.name for value in ir.load(made.path).graph.initializers.values() if value.const_value.size >= 10**5]
    assert len(floats) == (1 if transposed else 2)
    assert data_path(made.path).stat().st_size < (0.3 if transposed else 0.55) * data_path(exported.path).stat().st_size


def test_a_scheme_leaves_tables_alone_unless_it_is_told(tmp_path) -> None:
    exported = save_exported(text_model(), tmp_path, SPEC)
    sizes = {}
    for word in ("float", "int8"):
        made = apply_scheme(exported, "int8", ids_data(), tmp_path / word, {}, replace(RECIPE, embeddings=word))
        sizes[word] = data_path(made.path).stat().st_size
    table = ROWS * WIDTH
    assert sizes["float"] - sizes["int8"] == pytest.approx(3 * table - 4 * table / 128, rel=0.05)
