"""Comparing exported models with eager PyTorch: a Linear that int8 spoils is named; hooks; what shares no code path."""

from __future__ import annotations

import json
import shutil
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
from toolkit.compare.run import Asked, compare
from toolkit.compare.store import Store

DIGITS = Path(model_zoo.__file__).parent / "data" / "vit-digits"
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
    return recipe(folder, model)


@pytest.fixture(scope="module")
def harm(harmed):
    return compare("reference", str(harmed), Asked(stages=True, picture="0"))


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
    found = compare("reference", str(bundle))
    assert found.first_bad is None
    assert found.inputs == f"3 golden batches of {bundle}"
    assert len(found.modules) > 50
    assert set(found.guilty[:3]) <= {module.module for module in found.modules if module.kind in ("Linear", "Conv2d")}
    between = CliRunner().invoke(main, ["compare", f"{bundle}@export", str(bundle), "--json"], catch_exceptions=False)
    said = json.loads(between.stdout)
    ours = {module.module: module.sqnr_db for module in found.modules}
    theirs = {module["module"]: module["sqnr_db"] for module in said["modules"]}
    shared = sorted(set(ours) & set(theirs))
    assert len(shared) > 45
    # The canonical graph is fp32 PyTorch to a hair, so int8 is as far from the one as from the other.
    assert [theirs[name] for name in shared] == pytest.approx([ours[name] for name in shared], abs=0.1)


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
