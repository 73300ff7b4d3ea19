"""Images of the user's own: odd files, class folders, and what an evaluation makes of them."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from PIL import Image
from skimage import data as photographs
from transformers import ViTForImageClassification

from model_zoo import resolve
from model_zoo._labels import class_indices
from model_zoo._samples import Sample
from toolkit import plugins
from toolkit.errors import UnsupportedError, UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Evaluation, ModelSpec

ORIENTATION = 0x0112


def calibrate(spec: ModelSpec, source: Path, **given: int) -> Calibration:
    return plugins.family(spec.family).calibration(spec, Data(source=str(source), **given))


def evaluate(spec: ModelSpec, source: Path, **given: int) -> Evaluation:
    evaluation = plugins.family(spec.family).evaluation(spec, Data(source=str(source), **given))
    assert evaluation is not None
    return evaluation


def pixels(found: Calibration | Evaluation) -> np.ndarray:
    batches = found.batches() if isinstance(found, Calibration) else found.batches
    return np.concatenate([batch["pixel_values"] for batch in batches])


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return resolve(str(tiny_models.vit(tmp_path_factory.mktemp("features"))))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    names = {0: "tabby, tabby cat", 1: "Egyptian cat", 2: "crane", 3: "crane", 4: "sports-car"}
    options = {"id2label": names, "label2id": {name: key for key, name in names.items()}}
    return resolve(str(tiny_models.vit(tmp_path_factory.mktemp("classes"), ViTForImageClassification, **options)))


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(photographs.astronaut()).resize((40, 30))


def noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return path


def folder(path: Path, **classes: int) -> Path:
    for name, count in classes.items():
        for index in range(count):
            noise(path / name.replace("_", " ") / f"{index}.png", zlib.crc32(f"{name}{index}".encode()))
    return path


def test_a_sample_of_a_folder_is_drawn_with_its_seed(features: ModelSpec, tmp_path: Path) -> None:
    folder(tmp_path, a=20, b=20)
    everything, few = calibrate(features, tmp_path), calibrate(features, tmp_path, count=8)
    assert (everything.count, everything.total, few.count, few.total, few.seed) == (40, 40, 8, 40, 0)
    assert few.sha256 == calibrate(features, tmp_path, count=8).sha256
    assert few.sha256 != calibrate(features, tmp_path, count=8, seed=1).sha256
    rows = pixels(everything)
    places = [next(index for index, row in enumerate(rows) if np.array_equal(row, one)) for one in pixels(few)]
    assert places == sorted(places) != list(range(8))


def test_the_hash_is_that_of_the_content(features: ModelSpec, tmp_path: Path) -> None:
    first = folder(tmp_path / "first", a=4)
    second = shutil.copytree(first, tmp_path / "second")
    assert calibrate(features, first).sha256 == calibrate(features, second).sha256
    assert evaluate(features, folder(tmp_path / "e", a=40)).sha256 == evaluate(features, tmp_path / "e").sha256
    noise(second / "a" / "0.png", 99)
    assert calibrate(features, first).sha256 != calibrate(features, second).sha256


def test_colour_modes_and_orientation(features: ModelSpec, photo: Image.Image, tmp_path: Path) -> None:
    """Grey, palette, RGBA and 16-bit files are taken as the model takes colours; EXIF turns are undone."""
    grey = photo.convert("L")
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "grey3.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) << 8).save(tmp_path / "grey16.png")
    photo.save(tmp_path / "photo.png")
    alpha = photo.convert("RGBA")
    alpha.putalpha(255)
    alpha.save(tmp_path / "photo_rgba.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo.rotate(90, expand=True).save(tmp_path / "photo_turned.png", exif=exif)
    one, three, sixteen, plain, rgba, turned = (
        calibrate(features, tmp_path / f"{name}.png")
        for name in ("grey", "grey3", "grey16", "photo", "photo_rgba", "photo_turned")
    )
    assert pixels(one).shape == (1, 3, 16, 16)
    assert one.sha256 == three.sha256 == sixteen.sha256 != plain.sha256
    assert plain.sha256 == rgba.sha256 == turned.sha256
    assert one.items() == three.items() == sixteen.items()
    assert plain.items() == rgba.items() == turned.items() != one.items()


def test_a_file_that_cannot_be_decoded_is_named(features: ModelSpec, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:300])
    for read in (calibrate, evaluate):
        shutil.copy(tmp_path / "cut.jpg", folder(tmp_path / "many", a=40) / "a")
        with pytest.raises(UsageError, match=r"cut\.jpg is not a readable image"):
            read(features, tmp_path / "many")


def test_what_is_no_image_is_left_out(features: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no images"):
        evaluate(features, tmp_path)
    folder(tmp_path, a=2)
    (tmp_path / "a" / "._0.png").write_bytes(b"what macOS leaves behind")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "0.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("none")
    assert calibrate(features, tmp_path).count == 2


def test_class_folders_give_accuracy(classifier: ModelSpec, tmp_path: Path) -> None:
    """Names as the model has them, in another case, one of several, and with spaces for hyphens."""
    evaluation = evaluate(classifier, folder(tmp_path, tabby_cat=2, egyptian_cat=3, sports_car=1))
    assert evaluation.metric == "accuracy"
    assert evaluation.labels is not None
    assert evaluation.labels.tolist() == [1, 1, 1, 4, 0, 0]
    assert (evaluation.count, evaluation.source) == (6, str(tmp_path))


def test_class_folders_by_number(classifier: ModelSpec, tmp_path: Path) -> None:
    labels = evaluate(classifier, folder(tmp_path, **{"3": 1, "0": 2})).labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 3]


@pytest.mark.parametrize(
    ("classes", "says", "hint"),
    [
        ({"dog": 1}, "dog/0.png: the model has no class 'dog'", "Its classes: tabby, tabby cat, Egyptian cat"),
        ({"5": 1}, "the model has no class '5'", "Its classes"),
        ({"crane": 1}, "'crane' may be class 2 (crane) and 3 (crane)", "class's number"),
        ({"tabby": 1, ".": 1}, "1 of 2 samples have no class, the first at", "all of them a class, or none"),
    ],
)
def test_classes_that_do_not_fit(
    classes: dict[str, int], says: str, hint: str, classifier: ModelSpec, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate(classifier, folder(tmp_path, **classes))
    assert says in str(caught.value)
    assert hint in caught.value.hint


def test_a_name_in_digits_is_a_name_where_the_model_has_such(tmp_path: Path) -> None:
    spec = resolve("vit-digits")
    labels = evaluate(spec, folder(tmp_path, **{"7": 2, "1": 1})).labels
    assert labels is not None
    assert labels.tolist() == [1, 7, 7]
    # Class 0 is called "1" here: a folder "0" is a mistake, not class "1".
    with pytest.raises(UsageError, match="the model has no class '0'"):
        class_indices([Sample(None, "0", "0/a.png")], ["1", "2", "3"])
    by_name, by_number = Sample(None, "1", "1/a.png"), Sample(None, 1, "line 1")
    found = class_indices([by_name, by_number], ["1", "2", "3"])
    assert found is not None
    assert found.tolist() == [0, 1]


def test_images_without_classes_give_agreement(classifier: ModelSpec, tmp_path: Path) -> None:
    for index in range(3):
        noise(tmp_path / f"{index}.png", index)
    evaluation = evaluate(classifier, tmp_path)
    assert (evaluation.metric, evaluation.labels, evaluation.count) == ("accuracy", None, 3)


def test_features_are_judged_by_their_neighbours(features: ModelSpec, tmp_path: Path) -> None:
    evaluation = evaluate(features, folder(tmp_path, whatever=40))
    assert (evaluation.metric, evaluation.labels, evaluation.count) == ("retrieval", None, 40)
    with pytest.raises(UsageError, match="holds 31 samples, too few") as caught:
        evaluate(features, folder(tmp_path / "few", a=31))
    assert "32 or more" in caught.value.hint


def test_no_more_is_kept_than_a_bundle_should_hold(features: ModelSpec, tmp_path: Path) -> None:
    folder(tmp_path, a=260)
    assert evaluate(features, tmp_path).count == 256
    assert evaluate(features, tmp_path, count=259).count == 259


def test_large_images_are_fewer(tmp_path: Path) -> None:
    from model_zoo._user_data import evaluation_count

    spec = resolve(str(tiny_models.dinov2(tmp_path / "m", image_size=16)))
    wide = spec.inputs[0].__class__("pixel_values", "float32", ("batch", 3, 518, 518))
    large = spec.__class__(**{**{name: getattr(spec, name) for name in spec.__slots__}, "inputs": (wide,)})
    # 3 · 518 · 518 · 4 bytes an image, 256 MiB in all.
    assert evaluation_count(large, Data()) == 83
    assert evaluation_count(large, Data(count=100)) == 100


def test_classes_of_pixels_are_judged_by_their_agreement(tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from toolkit.drift.measure import measure

    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 2, 2, 2]}
    config = SegformerConfig(image_size=32, decoder_hidden_size=8, num_labels=4, **sizes)
    spec = resolve(str(tiny_models.save(SegformerForSemanticSegmentation(config), tmp_path / "m")))
    for index in range(3):
        Image.new("RGB", (32, 32), (40 * index, 0, 9)).save(tmp_path / f"{index}.png")
    evaluation = evaluate(spec, tmp_path)
    assert (evaluation.metric, evaluation.labels, evaluation.count) == ("accuracy", None, 3)
    logits = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)
    other = logits.copy()
    other[0, :, 0, 0] = np.roll(logits[0, :, 0, 0], 1)
    pair = ([{"logits": logits}], [{"logits": other}])
    task = measure(
        "x", "x", *pair, spec, evaluation=evaluation, evaluation_reference=pair[0], evaluation_candidate=pair[1]
    ).task
    assert task is not None
    assert (task.count, task.top1_agreement) == (3 * 64, 1 - 1 / 192)


def test_an_output_of_no_fixed_length_has_no_metric(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    spec = resolve(str(tiny_models.bert(tmp_path / "m", BertForMaskedLM)))
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(UnsupportedError, match=r"has no metric for .*'last_hidden_state' is no vector"):
        evaluate(spec, tmp_path / "a.txt")
