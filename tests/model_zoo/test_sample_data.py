"""Sample inputs: shipped ones, the user's own, and the error for each file that cannot be one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

import model_zoo
from model_zoo import resolve
from toolkit import plugins
from toolkit.errors import UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Dim, ModelSpec

DATA = Path(model_zoo.__file__).parent / "data"


def calibrate(spec: ModelSpec, source: Path | None = None, count: int = 6) -> Calibration:
    return plugins.family(spec.family).calibration(spec, Data(source=str(source or ""), count=count))


def rows(batches: Any) -> int:
    return sum(len(next(iter(batch.values()))) for batch in batches)


def assert_inputs(spec: ModelSpec, batch: Mapping[str, Any]) -> None:
    assert set(batch) == {item.name for item in spec.inputs}
    for item in spec.inputs:
        array = batch[item.name]
        assert array.dtype == np.dtype(item.dtype)
        for size, axis in zip(array.shape, item.shape, strict=True):
            assert size == axis if isinstance(axis, int) else spec.dims[axis].min <= size <= spec.dims[axis].max


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return resolve(str(tiny_models.sentence_encoder(tmp_path_factory.mktemp("text"))))


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return resolve(str(tiny_models.vit(tmp_path_factory.mktemp("vision"))))


DIMS: dict[str, Dim] = {"batch": Dim(2, 2, 3), "sequence": Dim(24, 24, 24)}


@pytest.mark.parametrize("family", ["bert", "vit", "digits"])
@pytest.mark.parametrize("tight", [False, True])
def test_all_inputs_keep_to_the_dims(family: str, tight: bool, tmp_path: Path) -> None:
    name = {"bert": tiny_models.bert, "vit": tiny_models.vit, "digits": lambda _: "vit-digits"}[family](tmp_path)
    dims = {key: dim for key, dim in DIMS.items() if key == "batch" or family == "bert"}
    spec = resolve(str(name), dims=dims if tight else {})
    own = plugins.family(spec.family)
    calibration, evaluation = own.calibration(spec, Data(count=9)), own.evaluation(spec, Data())
    for batch in [*own.golden(spec), *calibration.batches(), *(evaluation.batches if evaluation else ())]:
        assert_inputs(spec, batch)
    assert rows(calibration.batches()) == calibration.count


def test_golden_inputs_are_the_same_each_time_and_vary_in_shape(text: ModelSpec, vision: ModelSpec) -> None:
    for spec in (text, vision):
        family = plugins.family(spec.family)
        first, second = family.golden(spec), family.golden(spec)
        for one, two in zip(first, second, strict=True):
            assert all(np.array_equal(one[name], two[name]) for name in one)
        assert len({tuple(next(iter(batch.values())).shape) for batch in first}) == len(first) > 1
    ids = plugins.family("bert").golden(text)
    assert any((batch["attention_mask"] == 0).any() for batch in ids)
    assert all(batch["input_ids"].max() < tiny_models.BERT["vocab_size"] for batch in ids)


def test_calibration_streams_anew_with_a_stable_hash(text: ModelSpec, vision: ModelSpec) -> None:
    for spec in (text, vision):
        calibration = calibrate(spec)
        assert rows(calibration.batches()) == rows(calibration.batches()) == 6
        assert calibration.sha256 == calibrate(spec).sha256
        assert calibration.sha256 != calibrate(spec, count=5).sha256
    assert "hashed into token ids" in calibrate(text).source


def test_photographs_beyond_the_shipped_are_new_crops(vision: ModelSpec) -> None:
    batches = list(calibrate(vision, count=45).batches())
    images = np.concatenate([batch["pixel_values"] for batch in batches])
    assert len({image.tobytes() for image in images}) == 45


def test_shipped_splits_are_disjoint() -> None:
    splits = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in (DATA / "passages").iterdir()}
    assert {name: len(lines) for name, lines in splits.items()} == {"golden": 8, "calibration": 64, "evaluation": 256}
    assert len({line for lines in splits.values() for line in lines}) == 328
    with np.load(DATA / "digits.npz") as digits:
        held = {image.tobytes() for image in digits["heldout_images"]}
        seen = {image.tobytes() for name in ("calibration_images", "golden_images") for image in digits[name]}
    assert not held & seen
    photos = {split: {path.stem.split("-")[1] for path in (DATA / "photos" / split).iterdir()}
              for split in ("golden", "calibration")}  # fmt: skip
    assert not photos["golden"] & photos["calibration"]


def test_shipped_data_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if "vit-digits" not in path.parts) < 600_000
    assert (DATA / "vit-digits" / "model.safetensors").stat().st_size < 4_000_000


@torch.no_grad()
def test_vit_digits_reads_held_out_digits() -> None:
    spec = resolve("vit-digits")
    family = plugins.family("vit-digits")
    module, evaluation = family.load(spec), family.evaluation(spec, Data())
    assert evaluation is not None and evaluation.labels is not None
    assert spec.labels == tuple("0123456789")
    guesses = [
        module(pixel_values=torch.from_numpy(batch["pixel_values"]))["logits"].argmax(-1).numpy()
        for batch in evaluation.batches
    ]
    assert len(evaluation.labels) == 360
    assert (np.concatenate(guesses) == evaluation.labels).mean() >= 0.98


def test_retrieval_needs_the_models_own_tokenizer(text: ModelSpec) -> None:
    assert plugins.family("bert").evaluation(text, Data()) is None


def test_a_folder_of_images(vision: ModelSpec, tmp_path: Path) -> None:
    for index in range(5):
        Image.new("RGB", (20, 30), (index * 40, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.md").write_text("not an image, and not called one")
    calibration = calibrate(vision, tmp_path, 3)
    assert (calibration.count, calibration.source) == (3, str(tmp_path))
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"1\.png is not a readable image"):
        calibrate(vision, tmp_path)


def test_text_files(text: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one passage\n\nanother passage\n")
    (tmp_path / "b.jsonl").write_text('{"text": "a third"}\n"a fourth"\n')
    assert calibrate(text, tmp_path / "a.txt").count == 2
    assert calibrate(text, tmp_path).count == 4
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"body": "wrong"}\n')
    with pytest.raises(UsageError, match=r"b\.jsonl, line 2, has no text"):
        calibrate(text, tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_text("{\n")
    with pytest.raises(UsageError, match=r"b\.jsonl, line 1, is not JSON"):
        calibrate(text, tmp_path / "b.jsonl")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"a\.txt cannot be read"):
        calibrate(text, tmp_path / "a.txt")


def test_sources_that_are_empty_or_absent(text: ModelSpec, vision: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no images"):
        calibrate(vision, tmp_path)
    with pytest.raises(UsageError, match="holds no text"):
        calibrate(text, tmp_path)
    for spec in (text, vision):
        for name in ("absent", "absent.npz"):
            with pytest.raises(UsageError, match=f"there is no .*{name}"):
                calibrate(spec, tmp_path / name)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_arrays(vision: ModelSpec, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(size=(11, 3, 16, 16)).astype(np.float32)
    calibration = calibrate(vision, save(tmp_path / "good.npz", pixel_values=pixels), 11)
    streamed = np.concatenate([batch["pixel_values"] for batch in calibration.batches()])
    np.testing.assert_array_equal(streamed, pixels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((2, 3, 16, 16), np.float32)}, "has no array pixel_values"),
        ({"pixel_values": np.zeros((2, 3, 16, 16))}, "is float64"),
        ({"pixel_values": np.zeros((3, 16, 16), np.float32)}, "the model takes float32"),
        ({"pixel_values": np.zeros((2, 3, 16, 17), np.float32)}, "This axis has to be 16"),
        ({"pixel_values": np.zeros((0, 3, 16, 16), np.float32)}, "the model takes float32"),
        ({"pixel_values": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, Any], message: str, vision: ModelSpec, tmp_path: Path) -> None:
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UsageError, match=r"bad\.npz") as caught:
        calibrate(vision, path)
    assert message in f"{caught.value} {caught.value.hint}"


def test_an_npz_that_is_not_one(vision: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    for content in (b"", b"hello", b"PK\x03\x04 cut off", json.dumps([1]).encode()):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"bad\.npz cannot be read"):
            calibrate(vision, path)
    np.save(tmp_path / "bare", np.zeros(3))
    (tmp_path / "bare.npy").rename(path)
    with pytest.raises(UsageError, match=r"bad\.npz"):
        calibrate(vision, path)
