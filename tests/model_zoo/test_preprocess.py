"""Our pre-processing equals that of transformers, on real photographs and real text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_zoo import _preprocess
from toolkit.errors import UnsupportedError, UsageError

PHOTOS = sorted((Path(_preprocess.__file__).parent / "data" / "photos").rglob("*.jpg"))
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS = {
    "vit": {"image_processor_type": "ViTImageProcessor"},
    "vit-old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 96, "resample": 3, "image_std": [0.3] * 3},
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **IMAGENET},
    "pads": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 90}, "crop_size": 101},
    "nearest": {"image_processor_type": "ViTImageProcessor", "resample": 0, "rescale_factor": 0.01},
    "unscaled": {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "do_rescale": False},
    "clip": {"image_processor_type": "CLIPImageProcessor"},
    "deit": {"image_processor_type": "DeiTImageProcessor"},
    "siglip": {"image_processor_type": "SiglipImageProcessor"},
    "segformer": {
        "image_processor_type": "SegformerImageProcessor", "do_reduce_labels": True, "size": 96, "resample": 2,
        **IMAGENET,
    },
}  # fmt: skip


def processor_folder(folder: Path, config: dict[str, object]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_equal_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    folder = processor_folder(tmp_path, PROCESSORS[name])
    reference = AutoImageProcessor.from_pretrained(folder, backend="pil")
    files = PHOTOS[::7]
    expected = np.stack(reference([Image.open(file) for file in files])["pixel_values"])
    actual = _preprocess.images(files, folder, ("batch", *expected.shape[1:]))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


def test_short_texts_are_padded_with_the_tokenizers_own_token(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[MASK]\n[PAD]\na\n")
    tensors = _preprocess.texts(["a", "a a"], tmp_path, ["input_ids", "attention_mask"], max_length=8, min_length=6)
    assert tensors["input_ids"].tolist() == [[1, 5, 2, 4, 4, 4], [1, 5, 5, 2, 4, 4]]
    assert tensors["attention_mask"].sum(1).tolist() == [3, 4]
    pair = _preprocess.encode([("a", "a a a a")], tmp_path, max_length=7)[0]
    assert (len(pair), pair.sequence_ids.count(1)) == (7, 3)


def test_size_is_read_from_the_processor(tmp_path: Path) -> None:
    assert _preprocess.image_size(processor_folder(tmp_path, PROCESSORS["dinov2"])) == (224, 224)
    assert _preprocess.image_size(processor_folder(tmp_path, PROCESSORS["vit-old"])) == (96, 96)
    assert _preprocess.image_size(None) is None


def test_orientation_from_exif_is_honoured(tmp_path: Path) -> None:
    upright = Image.open(PHOTOS[0]).resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned = _preprocess.images([tmp_path / "turned.png"], None, ("batch", 3, 40, 60))
    np.testing.assert_array_equal(turned, _preprocess.images([upright], None, ("batch", 3, 40, 60)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_colour_mode_comes_out_near_the_grey_it_shows(mode: str, channels: int) -> None:
    image = Image.new("L", (9, 9), 255)
    wide = Image.fromarray(np.full((9, 9), 65535, np.uint16)) if mode == "I;16" else image.convert("RGB").convert(mode)
    pixels = _preprocess.images([wide], None, ("batch", channels, 8, 8))
    assert pixels.shape == (1, channels, 8, 8)
    np.testing.assert_allclose(pixels, 1.0, atol=0.02)


def test_a_file_that_is_not_an_image_is_named(tmp_path: Path) -> None:
    fake = tmp_path / "cat.jpg"
    fake.write_bytes(b"not a picture")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(PHOTOS[0].read_bytes()[:2000])
    for path in (fake, cut, tmp_path / "absent.png"):
        with pytest.raises(UsageError, match=path.name):
            _preprocess.images([path], None, ("batch", 3, 8, 8))


def test_a_processor_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="224 by 224, the model takes 32 by 32"):
        _preprocess.images(PHOTOS[:1], processor_folder(tmp_path, PROCESSORS["vit"]), ("batch", 3, 32, 32))
    with pytest.raises(UsageError, match="normalises 3 channels"):
        _preprocess.images(PHOTOS[:1], processor_folder(tmp_path, PROCESSORS["vit"]), ("batch", 1, 224, 224))
    with pytest.raises(UnsupportedError, match="crop_pct"):
        odd = {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.9, "size": 224, "resample": 3}
        _preprocess.images(PHOTOS[:1], processor_folder(tmp_path, {**odd, **IMAGENET}), ("batch", 3, 224, 224))
    with pytest.raises(UnsupportedError, match="leaves size"):
        _preprocess.images(PHOTOS[:1], processor_folder(tmp_path, {"image_processor_type": "Own"}), ("b", 3, 8, 8))


TEXTS = ["Attention is all you need.", "Ünïcode, CAPITALS and 漢字 — and more words than sixteen " * 3, "one"]


def make_tokenizer(folder: Path) -> Path:
    from transformers import BertTokenizer

    words = sorted({word for text in TEXTS for word in text.lower().replace(".", " .").split()})
    letters = sorted({letter for text in TEXTS for letter in text.lower()} - {" "})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{x}" for x in letters)]
    vocabulary = list(dict.fromkeys(vocabulary))
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}, model_max_length=24)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("limit", [None, 16])
def test_texts_equal_transformers(limit: int | None, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder, names = make_tokenizer(tmp_path), ["input_ids", "attention_mask", "token_type_ids"]
    reference = AutoTokenizer.from_pretrained(folder)
    expected = reference(TEXTS, padding=True, truncation=True, max_length=limit, return_tensors="np")
    actual = _preprocess.texts(TEXTS, folder, names, max_length=limit)
    assert list(actual) == names
    for name in names:
        assert actual[name].dtype == np.int64
        np.testing.assert_array_equal(actual[name], expected[name])


def test_the_truncation_saved_in_the_file_is_dropped(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path)
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(saved))
    assert _preprocess.texts(TEXTS, folder, ["input_ids"])["input_ids"].shape == (3, 24)


def test_texts_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        _preprocess.texts(["hello"], tmp_path, ["input_ids"])
    with pytest.raises(UsageError, match="without a tokenizer"):
        _preprocess.texts(["hello"], None, ["input_ids"])
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        _preprocess.texts(["hello"], tmp_path, ["input_ids"])


def test_an_input_that_no_tokenizer_gives_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bbox"):
        _preprocess.texts(["hello"], make_tokenizer(tmp_path), ["input_ids", "bbox"])
