"""Samples that are in the calibration set and in the evaluation set: counted, kept in the manifest, told on stderr."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from model_zoo import resolve
from toolkit import plugins
from toolkit.bundle.read import evaluation as stored
from toolkit.bundle.read import open_bundle
from toolkit.cli import main
from toolkit.overlap import Overlap, overlap
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Evaluation, ModelSpec

PASSAGES = Path(__file__).parents[2] / "model_zoo" / "data" / "passages"
DIGITS = Path(__file__).parents[2] / "model_zoo" / "data" / "digits.npz"


def shared(spec: ModelSpec, calibration: Data, evaluation: Data) -> Overlap | None:
    family = plugins.family(spec.family)
    return overlap(family.calibration(spec, calibration), family.evaluation(spec, evaluation))


def at(place: Path, **given: int) -> Data:
    return Data(source=str(place), **given)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("decoder")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=512, **sizes)).save_pretrained(folder)
    return resolve(str(folder))


def test_sets_without_items_say_nothing() -> None:
    known = Calibration(lambda: iter(()), 1, "here", items=lambda: [frozenset({b"a"})])
    assert overlap(None, Evaluation("accuracy", ())) is None
    assert overlap(known, None) is None
    assert overlap(known, Evaluation("accuracy", ())) is None
    assert overlap(known, Evaluation("accuracy", (), items=lambda: [frozenset({b"b", b"a"}), frozenset({b"b"})])) == (
        Overlap(1, 2)
    )


def test_the_shipped_sets_share_nothing(decoder: ModelSpec) -> None:
    assert shared(resolve("vit-digits"), Data(count=128), Data()) == Overlap(0, 360)
    assert shared(decoder, Data(), Data()) == Overlap(0, 4)
    texts = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in PASSAGES.iterdir()}
    assert not set(texts["calibration"]) & set(texts["evaluation"])


def test_an_image_is_known_whatever_its_file(tmp_path: Path) -> None:
    spec, rng = resolve("vit-digits"), np.random.default_rng(0)
    for index in range(6):
        image = Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8))
        for place, kind in (("seen", "png"), ("held", "bmp")):
            folder = tmp_path / place / str(index % 3)
            folder.mkdir(parents=True, exist_ok=True)
            if place == "seen" or index < 4:
                image.convert("RGB" if kind == "bmp" else "L").save(folder / f"{index}{place}.{kind}")
    Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / "held" / "0" / "new.png")
    assert shared(spec, at(tmp_path / "seen"), at(tmp_path / "held")) == Overlap(4, 5)


def test_the_shipped_digits_are_known_in_a_users_set(tmp_path: Path) -> None:
    spec = resolve("vit-digits")
    with np.load(DIGITS) as file:
        for index in range(3):
            Image.fromarray(file["heldout_images"][index]).save(tmp_path / f"{index}.png")
    assert shared(spec, at(tmp_path), Data()) == Overlap(3, 360)


def test_texts_are_known_but_for_white_space(decoder: ModelSpec, tmp_path: Path) -> None:
    """Windows of a language model: the second starts elsewhere, and is known by the whole lines in it."""
    lines = (PASSAGES / "evaluation.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "a.txt").write_text("\n".join(lines[:60]))
    (tmp_path / "b.txt").write_text("\n".join(f" {line.replace(' ', '  ')}" for line in lines[48:120]))
    (tmp_path / "c.txt").write_text("\n".join(lines[60:120]))
    found = shared(decoder, at(tmp_path / "a.txt"), at(tmp_path / "b.txt", count=99))
    assert found is not None
    assert 1 <= found.duplicates <= 4 < found.count
    apart = shared(decoder, at(tmp_path / "a.txt"), at(tmp_path / "c.txt", count=99))
    assert apart is not None
    assert apart.duplicates == 0
    itself = shared(decoder, at(tmp_path / "a.txt", count=99), at(tmp_path / "a.txt", count=5))
    assert itself == Overlap(5, 5)


def test_rows_of_arrays(tmp_path: Path) -> None:
    spec = resolve("vit-digits")
    channels = spec.inputs[0].shape[1:]
    rows = np.random.default_rng(0).normal(size=(9, *channels)).astype(np.float32)
    np.savez(tmp_path / "a.npz", pixel_values=rows[:5])
    np.savez(tmp_path / "b.npz", pixel_values=rows[3:], labels=np.arange(6))
    assert shared(spec, at(tmp_path / "a.npz"), at(tmp_path / "b.npz")) == Overlap(2, 6)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 digits to calibrate on, 30 with classes to evaluate on; 5 of them are in both."""
    root = tmp_path_factory.mktemp("digits")
    with np.load(DIGITS) as file:
        images, labels = file["heldout_images"], file["heldout_labels"]
    for index in range(45):
        for place, there in (("train", index < 20), ("val", index >= 15)):
            folder = root / place / str(labels[index])
            folder.mkdir(parents=True, exist_ok=True)
            if there:
                Image.fromarray(images[index]).save(folder / f"{index}.png")
    return root


def run(*arguments: object) -> tuple[dict[str, object], str]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.mark.heavy
def test_an_export_is_judged_on_the_users_set_and_tells_of_the_overlap(digits: Path, tmp_path: Path) -> None:
    arguments = ("export", "--model", "vit-digits", "--target", "ort-cpu-int8", "--output", tmp_path)
    answer, said = run(*arguments, "--calibration", digits / "train", "--evaluation", digits / "val")
    assert "WARNING: 5 of 30 evaluation samples are calibration samples too" in said
    bundle = open_bundle(tmp_path / "vit-digits-ort-cpu-int8")
    manifest = bundle.manifest
    assert manifest.overlap == Overlap(5, 30)
    assert manifest.evaluation == "accuracy"
    entry = manifest.evaluation_data
    assert entry is not None and manifest.calibration is not None
    assert (entry.source, entry.count, entry.total, entry.seed, entry.labelled) == (
        str(digits / "val"), 30, 30, 0, True,
    )  # fmt: skip
    assert (manifest.calibration.count, manifest.calibration.total, manifest.calibration.seed) == (20, 20, 0)
    kept, reference = stored(bundle) or (None, [])
    assert kept is not None and kept.labels is not None
    assert len(kept.labels) == sum(len(batch["logits"]) for batch in reference) == 30
    last = answer["bundles"][0]["drift"]["stages"][-1]["task"]
    assert (last["metric"], last["count"]) == ("accuracy", 30)
    checked, _ = run("check", bundle.folder)
    assert checked


@pytest.mark.heavy
def test_an_export_without_classes_keeps_the_agreement(digits: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    for path in (digits / "val").rglob("*.png"):
        shutil.copy(path, held)
    arguments = ("export", "--model", "vit-digits", "--target", "ort-cpu-int8", "--output", tmp_path / "b")
    answer, said = run(*arguments, "--evaluation", held, "--evaluation-count", 12, "--data-seed", 5)
    assert "WARNING" not in said
    bundle = open_bundle(tmp_path / "b" / "vit-digits-ort-cpu-int8")
    entry = bundle.manifest.evaluation_data
    assert entry is not None
    assert (entry.count, entry.total, entry.seed, entry.labelled) == (12, 30, 5, False)
    task = answer["bundles"][0]["drift"]["stages"][-1]["task"]
    assert task["reference_accuracy"] is task["accuracy_drop"] is None
    assert 0 <= task["top1_agreement"] <= 1
    kept, _ = stored(bundle) or (None, [])
    assert kept is not None and kept.labels is None
    run("check", bundle.folder)
