"""What is said where timm, or the torchvision that it needs, is not there or not of PyTorch's build."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from model_zoo import _preprocess, resolve
from toolkit.errors import MissingDependencyError, UnsupportedError

CONFIG = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 5}}


@pytest.fixture(autouse=True)
def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "model"


def test_without_timm(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in (str(model), "timm/vit_tiny_patch16_224"):
        with pytest.raises(MissingDependencyError, match="timm models need timm") as caught:
            resolve(name, weights="random")
        assert caught.value.hint == "pip install 'transformer-export-toolkit[timm]'"


def test_timm_beside_a_torchvision_of_another_build(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text('raise RuntimeError("operator torchvision::nms does not exist\\nmore")')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        MissingDependencyError, match=r"does not import: operator torchvision::nms does not exist$"
    ) as no:
        resolve(str(model), weights="random")
    assert "pip install --force-reinstall --no-deps torchvision" in no.value.hint


def test_a_bundle_prepares_images_without_timm(model: Path) -> None:
    recipe = _preprocess.recipe_of(model, ("batch", 3, 32, 32))
    assert (recipe.resize, recipe.crop, recipe.resample, recipe.crop_to_even) == (36, (32, 32), 3, True)
    assert recipe.mean == (0.485, 0.456, 0.406)
    for key, value in (("crop_mode", "border"), ("interpolation", "random"), ("crop_pct", 1.2)):
        values = {**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], key: value}}
        (model / "config.json").write_text(json.dumps(values))
        with pytest.raises(UnsupportedError, match=f"timm's .*{value}"):
            _preprocess.recipe_of(model, ("batch", 3, 32, 32))
