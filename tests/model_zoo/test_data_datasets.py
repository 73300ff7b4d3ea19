"""Sets of the `datasets` library that lie on this machine, by its own code; and what is said of those that do not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from PIL import Image
from transformers import BertForSequenceClassification, ViTForImageClassification

from model_zoo import resolve
from toolkit import plugins
from toolkit.errors import MissingDependencyError, UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Evaluation, ModelSpec

NAMES = {0: "cat", 1: "dog"}
OPTIONS = {"id2label": NAMES, "label2id": {name: key for key, name in NAMES.items()}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library writes its cache into the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return resolve(str(tiny_models.bert(tmp_path_factory.mktemp("t"), BertForSequenceClassification, **OPTIONS)))


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return resolve(str(tiny_models.vit(tmp_path_factory.mktemp("v"), ViTForImageClassification, **OPTIONS)))


def calibrate(spec: ModelSpec, source: str, **given: Any) -> Calibration:
    return plugins.family(spec.family).calibration(spec, Data(source=source, **given))


def evaluate(spec: ModelSpec, source: str, **given: Any) -> Evaluation:
    evaluation = plugins.family(spec.family).evaluation(spec, Data(source=source, **given))
    assert evaluation is not None
    return evaluation


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [{"text": f"text number {index}", "label": index % 2, **changes} for index in range(count)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_folder_of_json_lines_with_splits(text: ModelSpec, tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "train.jsonl", rows(30)).parent
    write(folder / "test.jsonl", rows(12))
    source = f"datasets:{folder}"
    calibration, evaluation = calibrate(text, source, count=10), evaluate(text, source)
    assert (calibration.count, calibration.total) == (10, 30)
    assert calibration.source.startswith(f"{source}:train")
    assert (evaluation.count, evaluation.metric) == (12, "accuracy")
    assert evaluation.source.startswith(f"{source}:test")
    assert evaluation.labels is not None
    assert evaluation.labels.tolist() == [0, 1] * 6
    # The same texts as read by the toolkit's own reader.
    assert evaluate(text, f"{source}:train").sha256 == evaluate(text, str(folder / "train.jsonl")).sha256


def test_parquet_with_class_names_and_columns_of_other_names(text: ModelSpec, tmp_path: Path) -> None:
    import datasets

    kinds = datasets.Features({"say": datasets.Value("string"), "kind": datasets.ClassLabel(names=["dog", "cat"])})
    made = datasets.Dataset.from_dict({"say": ["bow", "meow", "purr"], "kind": [0, 1, 1]}, features=kinds)
    made.to_parquet(tmp_path / "a.parquet")
    evaluation = evaluate(text, f"datasets:{tmp_path}/a.parquet#say,kind")
    assert evaluation.labels is not None
    # Dog is 0 there and 1 here: names count.
    assert evaluation.labels.tolist() == [1, 0, 0]
    assert calibrate(text, f"datasets:{tmp_path}/a.parquet").count == 3


def test_a_set_that_was_saved_to_disk(text: ModelSpec, tmp_path: Path) -> None:
    import datasets

    made = datasets.Dataset.from_list(rows(20))
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "validation": made.select(range(4))}).save_to_disk(tmp_path / "two")
    assert evaluate(text, f"datasets:{tmp_path}/one").count == 20
    assert evaluate(text, f"datasets:{tmp_path}/two").count == 4
    assert calibrate(text, f"datasets:{tmp_path}/two").count == 20


def test_images_in_class_folders_and_in_parquet(vision: ModelSpec, tmp_path: Path) -> None:
    import datasets

    for index, name in enumerate(["dog", "cat", "dog"]):
        place = tmp_path / "photos" / name
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    ours = evaluate(vision, str(tmp_path / "photos"))
    theirs = evaluate(vision, f"datasets:{tmp_path}/photos")
    assert ours.labels is not None and theirs.labels is not None
    assert theirs.labels.tolist() == ours.labels.tolist() == [0, 1, 1]
    assert theirs.sha256 == ours.sha256
    # In the file, as bytes.
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), split="train")
    loaded.to_parquet(tmp_path / "photos.parquet")
    packed = evaluate(vision, f"datasets:{tmp_path}/photos.parquet")
    assert packed.sha256 == ours.sha256
    assert packed.items() == ours.items()


def test_an_image_in_a_set_that_cannot_be_decoded(vision: ModelSpec, tmp_path: Path) -> None:
    import datasets

    kinds = datasets.Features({"image": datasets.Image(decode=False)})
    made = datasets.Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}]}, features=kinds)
    made.cast_column("image", datasets.Image()).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(UsageError, match=r"bad\.parquet:train, row 1 is not a readable image"):
        calibrate(vision, f"datasets:{tmp_path}/bad.parquet")


@pytest.mark.parametrize(
    ("tail", "says", "hint"),
    [
        (":dev", "has no split 'dev'", "Its splits: train"),
        ("#body", "has no column 'body'", "Its columns: text, label, other"),
        ("#text,kind", "has no column 'kind'", "Its columns: text, label, other"),
        ("#label", "row 1, column 'label' holds no text", "#COLUMN"),
        ("#text,other", "row 1: the model has no class 'x'", "Its classes: cat, dog"),
    ],
)
def test_what_a_set_does_not_have(tail: str, says: str, hint: str, text: ModelSpec, tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "train.jsonl", rows(3, other="x")).parent
    with pytest.raises(UsageError) as caught:
        evaluate(text, f"datasets:{folder}{tail}")
    assert says in str(caught.value)
    assert hint in caught.value.hint


def test_two_columns_that_could_be_meant(text: ModelSpec, tmp_path: Path) -> None:
    folder = write(tmp_path / "set" / "train.jsonl", [{"question": "a", "answer": "b"}]).parent
    with pytest.raises(UsageError, match="no one column of texts") as caught:
        calibrate(text, f"datasets:{folder}")
    assert "question, answer" in caught.value.hint
    assert calibrate(text, f"datasets:{folder}#answer").count == 1


def test_what_the_library_cannot_read(text: ModelSpec, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 nothing of the kind")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"")
    for name, says in (("broken.parquet", "the datasets library cannot read"), ("empty", "cannot read"),
                       ("a.zip", "is no file of a data set")):  # fmt: skip
        with pytest.raises(UsageError, match=says) as caught:
            calibrate(text, f"datasets:{tmp_path}/{name}")
        assert caught.value.hint


def test_a_script_in_the_folder_is_not_run(text: ModelSpec, tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(UsageError, match="the datasets library cannot read"):
        calibrate(text, f"datasets:{folder}")
    assert not (tmp_path / "ran").exists()


def test_offline_only_what_lies_here_is_read(tmp_path: Path) -> None:
    spec = resolve(str(tiny_models.bert(tmp_path / "m")), offline=True)
    with pytest.raises(UsageError, match="--offline forbids to ask the Hub") as caught:
        calibrate(spec, "datasets:nobody/nothing")
    assert "datasets:FOLDER" in caught.value.hint


def test_without_the_library_the_command_is_named(text: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "datasets" else find(name))
    with pytest.raises(MissingDependencyError, match="needs the datasets library") as caught:
        calibrate(text, "datasets:nobody/nothing")
    assert caught.value.hint == 'pip install "transformer-export-toolkit[datasets]"'
