"""Which runs a sweep file and recipe files make, and what a run's key depends on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import toolkit
from toolkit.errors import UsageError
from toolkit.sweep.expand import runs_of
from toolkit.sweep.run import Run

SWEEP = """
version: 1
base:
  seed: 7
  calibration: {count: 16}
  quantization: {smoothing: 0.5, layers: {"*.head": fp32}}
models:
  - vit-digits
  - {model: other, weights: random, dims: {batch: 4}, targets: [ort-cpu-fp16]}
targets: [ort-cpu-fp32, ort-cpu-int8]
recipes:
  - name: plain
    seed: 9
  - name: wide
    targets: [trt-int8]
    quantization: {layers: {"*.fc1": fp16}}
exclude:
  - {model: vit-*, target: "*-fp32"}
"""


def runs(folder: Path, text: str, name: str = "sweep.yaml") -> tuple[Run, ...]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return runs_of([path])


def test_a_sweep_is_the_product_less_what_is_excluded(tmp_path: Path) -> None:
    made = runs(tmp_path, SWEEP)
    assert [(run.model, run.target, run.variant) for run in made] == [
        ("vit-digits", "ort-cpu-int8", "plain"),
        ("vit-digits", "trt-int8", "wide"),
        ("other", "ort-cpu-fp16", "plain"),
        ("other", "trt-int8", "wide"),
    ]
    assert all(run.recipe.targets == (run.target,) for run in made)
    assert [run.recipe.seed for run in made] == [9, 7, 9, 7]
    assert all(run.recipe.calibration.count == 16 for run in made)
    assert (made[2].recipe.weights, made[2].recipe.dims["batch"].max) == ("random", 4)


def test_sections_are_merged_and_the_recipes_own_patterns_come_first(tmp_path: Path) -> None:
    wide = runs(tmp_path, SWEEP)[1].recipe.quantization
    assert wide.smoothing == 0.5
    assert list(wide.layers.items()) == [("*.fc1", "fp16"), ("*.head", "fp32")]


def test_recipe_files_are_a_run_for_each_target(tmp_path: Path) -> None:
    made = runs(tmp_path, "model: vit-digits\ntargets: [ort-cpu-fp32, ort-cpu-int8, ort-cpu-int8]\n", "mine.yaml")
    assert [(run.target, run.variant) for run in made] == [("ort-cpu-fp32", "mine"), ("ort-cpu-int8", "mine")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [m]\n", "no targets for m"),
        ("models: [m]\ntargets: [t]\nrecipes:\n  - name: a\n  - name: a\n", "line 5, column 5: two recipes"),
        ("models: [m]\ntargets: [t]\nexclude:\n  - {target: s}\n", "line 4, column 5: leaves out no run"),
        ("models: [m, m]\ntargets: [t]\n", "'default' and 'default' are the same run of m for t"),
        ("models: [m]\ntargets: [t]\nrecipes: [{name: ../a}]\n", "recipes.0.name"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        runs(tmp_path, text)


def test_a_run_is_known_by_what_it_is_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "weights").write_text("1")
    text = "models: [net]\ntargets: [ort-cpu-int8]\n"
    (first,) = runs(tmp_path, text)
    assert first.recipe.model == str(tmp_path / "net")
    assert first.name == f"net-ort-cpu-int8-default-{first.key[:8]}"
    assert runs(tmp_path, text + "recipes: [{name: renamed}]\n")[0].key == first.key
    assert runs(tmp_path, text + "base: {seed: 1}\n")[0].key != first.key
    os.utime(tmp_path / "net" / "weights", (1, 1))
    assert runs(tmp_path, text)[0].key != first.key
    os.utime(tmp_path / "net" / "weights", (1, 1))
    again = runs(tmp_path, text)[0].key
    monkeypatch.setattr(toolkit, "__version__", "99")
    assert runs(tmp_path, text)[0].key != again
