"""What is wrong in a YAML file is told with its line, in recipes and in sweeps alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import UsageError
from toolkit.recipe.file import read_recipe, write_recipe
from toolkit.sweep.document import VERSION, Sweep
from toolkit.yaml_document import YamlDocument

RECIPE = "version: 1\nmodel: m\ntargets: [ort-cpu-int8]\n"
SWEEP = "models: [m]\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "is no recipe: it holds no mapping"),
        ("model: [m", "line 1, column 10: "),
        ("version: 7\n" + RECIPE.partition("\n")[2], "line 1, column 1: version 7, this toolkit reads up to 1"),
        (RECIPE + "sed: 3\n", r"line 4, column 1: unknown key 'sed'\. Did you mean seed.* Allowed: version, model"),
        (RECIPE + "quantization:\n  exlude: [a]\n", "line 5, column 3: unknown key 'quantization.exlude'.*exclude"),
        (RECIPE + "evaluation: {sourc: a}\n", "line 4, column 14: unknown key 'evaluation.sourc'.*source, count, seed"),
        (RECIPE + "gate:\n  sqnr: high\n", "line 5, column 3: gate.sqnr: "),
        (RECIPE + "dims: {batch: '1-8'}\n", "line 4, column 8: dims.batch: '1-8' is not of the form"),
        ("model: m\n", "line 1, column 1: targets: Field required"),
        (RECIPE + "quantization: {exclude: [*.fc1]}\n", "line 4, column"),
        (
            RECIPE
            + "a: &a [x, x]\n"
            + "".join(f"a{n}: &a{n} [*a{n - 1 or ''}, *a{n - 1 or ''}]\n" for n in range(1, 15)),
            "aliases counted",
        ),
        ("[" * 300, "larger or nested deeper than any"),
    ],
)
def test_a_wrong_recipe_is_told_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        read_recipe(written(tmp_path, text))
    assert raised.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipes: []\nmodels: [m]\n", "line 1, column 1: recipes: "),
        (SWEEP + "recipes:\n  - {name: a, sed: 1}\n", "line 3, column 15: unknown key 'recipes.0.sed'.*seed"),
        (SWEEP + "recipes: [{seed: 1}]\n", r"line 2, column 11: recipes\.0\.name: Field required"),
        (
            SWEEP + "base:\n  build: {arc: x}\n",
            "line 3, column 11: unknown key 'base.build.arc'.*Allowed: arch, timeout",
        ),
        (SWEEP + "base: {model: other}\n", "line 2, column 8: base.model: 'other' belongs under models"),
        ("models:\n  - m\n  - {model: n, quantization: {block-size: 48}}\n", "line 3, column 31: models.1.quantiz"),
        (SWEEP + "exclude: [{scheme: int8}]\n", "line 2, column 12: unknown key.*Allowed: model, target, recipe"),
    ],
)
def test_a_wrong_sweep_is_told_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        YamlDocument.load(written(tmp_path, text), "sweep", "hint").parse(Sweep, VERSION)


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    text = RECIPE + "dims: {batch: 1:4:8}\nquantization:\n  layers: {'*.fc1': fp16, '*': int8}\ngate: {sqnr: off}\n"
    recipe = read_recipe(written(tmp_path, text))
    write_recipe(recipe, tmp_path / "again.yaml", "made here")
    assert (tmp_path / "again.yaml").read_text(encoding="utf-8").startswith("# made here\nversion: 1\n")
    assert read_recipe(tmp_path / "again.yaml") == recipe
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_recipe_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, RECIPE))
    with pytest.raises(UsageError, match="cannot write"):
        write_recipe(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file.yaml"]
