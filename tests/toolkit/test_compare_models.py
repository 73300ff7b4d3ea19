"""Comparing exported models with eager PyTorch: a Linear that int8 spoils is named; hooks; what shares no code path."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from torch import nn

import model_zoo
from toolkit.cli import main
from toolkit.compare.eager import paths_of, watch
from toolkit.compare.keys import Key
from toolkit.compare.result import read_comparison
from toolkit.compare.run import compare
from toolkit.compare.store import Store
from toolkit.recipe.file import read_recipe

DIGITS = Path(model_zoo.__file__).parent / "data" / "vit-digits"
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "compare_memory.py"
HARMED = "vit.layers.1.mlp.fc2"
CHANNELS = [3, 40, 77]


def recipe(folder, model, target="ort-cpu-int8", **more):
    lines = [f"{key}: {value}" for key, value in {"version": 1, "model": model, "targets": [target], **more}.items()]
    path = folder / "recipe.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def harmed(tmp_path_factory):
    """A trained ViT with one Linear that fp32 does not mind and int8 does.

    Three of its inputs are dead, so their weights say nothing; a thousand times as large, they set every
    column's scale.
    """
    folder = tmp_path_factory.mktemp("harmed")
    model = folder / "model"
    shutil.copytree(DIGITS, model)
    weights = load_file(model / "model.safetensors")
    before, after = (f"vit.encoder.layer.1.{name}.dense" for name in ("intermediate", "output"))
    weights[f"{before}.weight"][CHANNELS] = 0
    weights[f"{before}.bias"][CHANNELS] = -30
    weights[f"{after}.weight"][:, CHANNELS] *= 1000
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    # GPTQ would make good much of the harm.
    return recipe(folder, model, quantization="{rounding: nearest}")


@pytest.fixture(scope="module")
def answered(harmed):
    """What the command says of it, with all that it can be asked for."""
    asked = ["--stages", "--picture", "1", "--bisect", "--fail"]
    files = ["--output", str(harmed.with_name("c.json")), "--write-recipe", str(harmed.with_name("passing.yaml"))]
    return CliRunner().invoke(main, ["compare", "reference", str(harmed), *asked, *files], catch_exceptions=False)


@pytest.fixture(scope="module")
def harm(harmed, answered):
    assert answered.exit_code == 6
    return read_comparison(harmed.with_name("c.json"))


@pytest.mark.heavy
def test_the_command_says_what_to_do_and_bisects(harmed, answered):
    assert f"{HARMED} (Linear) is the first of" in answered.stdout
    assert f"--recipe exclude={HARMED}" in answered.stdout
    assert "1 of 26 layers must stay as they are for model to pass as ort-cpu-int8" in answered.stdout
    assert read_recipe(harmed.with_name("passing.yaml")).quantization.exclude[-1] == HARMED


@pytest.mark.heavy
def test_attention_maps_are_compared_and_drawn(harm):
    assert {head.module for head in harm.attention} == {f"vit.layers.{layer}.attention" for layer in range(4)}
    divergence = {head.module: head.divergence for head in sorted(harm.attention, key=lambda head: head.divergence)}
    # What comes before the harmed Linear looks where it did.
    assert divergence["vit.layers.0.attention"] < divergence["vit.layers.2.attention"]
    assert [picture.module for picture in harm.pictures] == [f"vit.layers.{layer}.attention" for layer in range(4)]
    assert harm.pictures[0].input == "row 1 of the inputs"


@pytest.mark.heavy
def test_the_harmed_linear_is_first_bad_and_most_guilty(harm):
    assert harm.first_bad == HARMED
    assert harm.guilty[0] == HARMED
    modules = {module.module: module for module in harm.modules}
    assert modules[HARMED].kind == "Linear"
    assert modules[HARMED].weight_absmax > 50
    # Of its signal more than a tenth is noise; of no other leaf a thousandth.
    assert modules[HARMED].added > 0.1
    assert modules[harm.guilty[1]].added < 1e-3
    # Parents say the same, and are not ranked.
    assert modules["vit.layers.1.mlp"].bad
    assert "vit.layers.1.mlp" not in harm.guilty
    assert not modules["vit.layers.1.mlp.activation_fn"].bad


@pytest.mark.heavy
def test_the_stage_that_adds_the_noise_is_seen(harm):
    levels = {stage.stage: {module.module: module.sqnr_db for module in stage.modules} for stage in harm.stages}
    assert list(levels) == ["export", "quantize", "lower"]
    assert min(levels["export"].values()) > 100
    assert levels["quantize"][HARMED] < 10
    assert levels["lower"][HARMED] == pytest.approx(levels["quantize"][HARMED], abs=0.1)


@pytest.mark.heavy
def test_smoothing_is_no_drift(harm):
    """SmoothQuant divides LayerNorms of this model by vectors; they are compared as PyTorch has them."""
    modules = {module.module: module for module in harm.modules}
    assert modules["vit.layers.0.layernorm_before"].sqnr_db > 40
    norms = [module for module in harm.modules if module.kind == "LayerNorm"]
    assert len(norms) == 9
    assert max(norm.added for norm in norms) < 1e-10


@pytest.mark.heavy
def test_a_bundle_is_compared_as_it_ships_and_at_its_other_stages(tmp_path):
    export = ["export", "--model", "vit-digits", "--target", "ort-cpu-int8", "--output", str(tmp_path)]
    assert CliRunner().invoke(main, export, catch_exceptions=False).exit_code == 0
    bundle = tmp_path / "vit-digits-ort-cpu-int8"
    same = compare(str(bundle), f"{bundle}@lower")
    assert same.inputs == f"3 golden batches of {bundle}"
    assert len(same.modules) > 50
    assert {module.sqnr_db for module in same.modules} == {math.inf}
    # Made again from the manifest, in fp32.
    before = compare("reference", f"{bundle}@export")
    assert len(before.modules) > 45
    assert min(module.sqnr_db for module in before.modules) > 100
    assert before.guilty == () or max(module.added for module in before.modules) < 1e-10


@pytest.mark.heavy
def test_memory_stays_below_twice_a_model_of_24_layers(tmp_path):
    """The resident peak of the whole comparison, export included, above what the libraries take."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 24}
    config = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 30522, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = recipe(tmp_path, tmp_path, "ort-cpu-fp32", weights="random")
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--of", str(path)], check=True, capture_output=True, text=True, timeout=600
    )
    found = json.loads(done.stdout)
    assert found["size"] == pytest.approx(367e6, rel=0.01)
    assert found["modules"] > 250
    assert found["peak"] < 2 * found["size"]


class _Twice(nn.Module):
    """A module with a layer that runs twice and one that answers a tuple, and writes into its own output later."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"shared": nn.Linear(4, 4), "pair": _Pair()})

    def forward(self, x):
        y = self.model["shared"](self.model["shared"](x))
        z, _ = self.model["pair"](y)
        z += 1
        return {"y": z}


class _Pair(nn.Module):
    def forward(self, x):
        return x * 2, None


def test_hooks_keep_what_each_module_answered(tmp_path):
    module = _Twice().eval()
    assert paths_of(module) >= {"shared", "pair"}
    store = Store(tmp_path)
    keys = [Key("out", "shared"), Key("out", "pair"), Key("in", "pair"), Key("answer", "y")]
    x = np.ones((2, 4), np.float32)
    seen = watch(module, keys, [{"x": x}], store)
    assert "runs 2 times" in seen.skipped["shared"]
    assert not store.has(Key("out", "shared"))
    before, after = (store.get(0, Key(kind, "pair")) for kind in ("in", "out"))
    np.testing.assert_array_equal(after, before * 2)
    np.testing.assert_array_equal(store.get(0, Key("answer", "y")), after + 1)
    largest = float(module.model["shared"].weight.detach().abs().max())
    assert seen.weights["shared"] == pytest.approx(largest)
    assert seen.kinds["pair"] == "_Pair"
    with torch.inference_mode():
        module(torch.from_numpy(x))
    assert not module.model["pair"]._forward_hooks
