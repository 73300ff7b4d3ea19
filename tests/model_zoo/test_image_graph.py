"""The image graph gives what Pillow gives, bit for bit, and what transformers' own image processors give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from model_zoo import _image_graph, _preprocess
from toolkit.processing import Processing
from toolkit.types import Dim, ModelSpec, TensorSpec

PHOTOS = Path(_preprocess.__file__).parent / "data" / "photos"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS = {
    "vit": ({"image_processor_type": "ViTImageProcessor"}, (224, 224)),
    "deit": ({"image_processor_type": "DeiTImageProcessor", "size": 120, "crop_size": 96}, (96, 96)),
    "clip": ({"image_processor_type": "CLIPImageProcessor"}, (224, 224)),
    "siglip": ({"image_processor_type": "SiglipImageProcessor", "size": {"height": 90, "width": 121}}, (90, 121)),
    "dinov2": ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **IMAGENET}, (224, 224)),
    "pads": (
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 90}, "crop_size": 101},
        (101, 101),
    ),
    "nearest": ({"image_processor_type": "ViTImageProcessor", "size": 93, "resample": 0}, (93, 93)),
    "box": ({"image_processor_type": "ViTImageProcessor", "size": 61, "resample": 4}, (61, 61)),
    "unscaled": (
        {"image_processor_type": "ViTImageProcessor", "size": 50, "do_normalize": False, "do_rescale": False},
        (50, 50),
    ),
}
OWN = {"image_processor_type": "Own", "size": 8, "image_mean": [0.5], "image_std": [0.25]}
SIZES = ((192, 288), (83, 131), (1, 1), (2, 3), (280, 4), (5, 190))
ORIENTATIONS = range(1, 9)


def spec_of(channels: int, size: tuple[int, int]) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        family="vit",
        kind="vision",
        task="image-classification",
        source="none",
        architecture="none",
        inputs=(TensorSpec("pixel_values", "float32", ("batch", channels, *size)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 10)),),
        dims={"batch": Dim(1, 1, 8)},
    )


def made(folder: Path, config: dict[str, object] | None, channels: int, size: tuple[int, int]) -> Processing:
    if config is None:
        return _image_graph.preprocessing(spec_of(channels, size), [])
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(config))
    return _image_graph.preprocessing(spec_of(channels, size), [path])


def session_of(processing: Processing) -> ort.InferenceSession:
    assert processing.graph is not None, processing.reason
    return ort.InferenceSession(processing.graph.SerializeToString(), providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, image: Image.Image, orientation: int = 1) -> np.ndarray:
    pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return session.run(None, {"image": pixels, "orientation": np.array(orientation, np.int64)})[0]


def photo(size: tuple[int, int], mode: str = "RGB", name: str = "01-chelsea.jpg") -> Image.Image:
    """A photograph of that height and width, cut from one where it is large enough; of alpha, its own brightness."""
    image = Image.open(PHOTOS / "golden" / name)
    image = image.resize((max(image.width, size[1]), max(image.height, size[0]))).crop((0, 0, size[1], size[0]))
    if mode == "RGBA":
        image.putalpha(image.convert("L"))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_pillow_and_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    config, size = PROCESSORS[name]
    processing = made(tmp_path, config, 3, size)
    assert (processing.exact, processing.bound, processing.reason) == (True, 0.0, "")
    session, theirs = session_of(processing), AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for shape in SIZES:
        for mode in ("RGB", "L", "RGBA"):
            image = photo(shape, mode)
            actual = run(session, image)
            np.testing.assert_array_equal(actual, _preprocess.images([image], tmp_path, actual.shape))
            if min(shape) > 3:  # of fewer rows, transformers takes an axis for the channels
                expected = np.stack(theirs([image.convert("RGB")])["pixel_values"])
                np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_of_exif(orientation: int, tmp_path: Path) -> None:
    config, size = PROCESSORS["pads"]
    session = session_of(made(tmp_path, config, 3, size))
    raw, exif = photo((61, 97)), Image.Exif()
    exif[0x0112] = orientation
    raw.save(tmp_path / "photo.png", exif=exif)
    expected = _preprocess.images([tmp_path / "photo.png"], tmp_path, ("batch", 3, *size))
    np.testing.assert_array_equal(run(session, raw, orientation), expected)


def test_unknown_orientations_turn_nothing(tmp_path: Path) -> None:
    session = session_of(made(tmp_path, None, 3, (20, 30)))
    upright = run(session, photo((61, 97)))
    for orientation in (0, 9, 77, -3):
        np.testing.assert_array_equal(run(session, photo((61, 97)), orientation), upright)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("resample", [0, 2, 3])
def test_every_colour_mode_without_a_processor_file(channels: int, resample: int, tmp_path: Path) -> None:
    config = {**OWN, "size": {"height": 8, "width": 9}, "resample": resample}
    for given in (None, config):
        session = session_of(made(tmp_path, given, channels, (8, 9)))
        for mode in ("L", "RGB", "RGBA"):
            for shape in ((41, 77), (8, 9), (8, 40), (3, 2)):
                image = photo(shape, mode, "03-coffee.jpg")
                folder = tmp_path if given else None
                expected = _preprocess.images([image], folder, ("batch", channels, 8, 9))
                np.testing.assert_array_equal(run(session, image), expected)


def test_deep_grey_is_handed_over_by_its_upper_8_bits(tmp_path: Path) -> None:
    deep = Image.fromarray((np.asarray(photo((50, 60), "L")).astype(np.uint16) << 8) + 77)
    session = session_of(made(tmp_path, None, 1, (8, 8)))
    handed = Image.fromarray((np.asarray(deep) >> 8).astype(np.uint8))
    np.testing.assert_array_equal(run(session, handed), _preprocess.images([deep], None, ("batch", 1, 8, 8)))


@pytest.mark.parametrize("resample", [1, 5])
def test_filters_of_sines_stay_within_one_step(resample: int, tmp_path: Path) -> None:
    config = {"image_processor_type": "ViTImageProcessor", "size": 57, "resample": resample}
    processing = made(tmp_path, config, 3, (57, 57))
    assert processing.bound == pytest.approx(2 / 255, rel=1e-5)
    assert processing.exact
    session = session_of(processing)
    for shape in SIZES:
        actual = run(session, photo(shape))
        expected = _preprocess.images([photo(shape)], tmp_path, actual.shape)
        assert np.abs(actual - expected).max() <= processing.bound


def test_both_orders_of_the_passes_are_taken(tmp_path: Path) -> None:
    """Rows first changes the rounding, and is what Pillow 13 does for tall images."""
    session = session_of(made(tmp_path, {"image_processor_type": "SiglipImageProcessor", "size": 48}, 3, (48, 48)))
    for shape in ((280, 60), (60, 280), (97, 72), (97, 73), (47, 200)):
        image = photo(shape, name="04-rocket.jpg")
        np.testing.assert_array_equal(run(session, image), _preprocess.images([image], tmp_path, ("n", 3, 48, 48)))


def test_only_standard_operators_and_no_warnings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    processing = made(tmp_path, PROCESSORS["clip"][0], 3, (224, 224))
    assert {node.domain for node in processing.graph.graph.node} == {""}
    onnx.checker.check_model(processing.graph, full_check=True)
    session = session_of(processing)
    for shape in SIZES:
        run(session, photo(shape))
    assert capfd.readouterr().err == ""
    assert [item.name for item in session.get_inputs()] == ["image", "orientation"]


def test_samples_are_small_and_what_pillow_gave(tmp_path: Path) -> None:
    processing = made(tmp_path, PROCESSORS["dinov2"][0], 3, (224, 224))
    session = session_of(processing)
    assert len(processing.samples) == 3
    assert {int(given["orientation"]) for given, _ in processing.samples} == {1, 6}
    for given, expected in processing.samples:
        assert given["image"].nbytes <= 100_000
        np.testing.assert_array_equal(session.run(None, dict(given))[0], expected["pixel_values"])


def test_an_image_of_another_size_than_the_models_fails(tmp_path: Path) -> None:
    config = {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    session = session_of(made(tmp_path, config, 3, (40, 30)))
    assert run(session, photo((40, 30))).shape == (1, 3, 40, 30)
    for shape in ((30, 40), (41, 30), (40, 29)):
        with pytest.raises(Exception, match="image_size_is_not_the_models"):
            run(session, photo(shape))


@pytest.mark.parametrize(
    ("config", "channels", "reason"),
    [
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, 3, "uses do_pad"),
        ({"image_processor_type": "Own"}, 3, "to its class"),
        ({"image_processor_type": "ViTImageProcessor", "size": 16}, 3, "makes images of 16 by 16"),
        ({"image_processor_type": "ViTImageProcessor", "size": 8, "resample": 6}, 3, "filter number 6"),
        ({"image_processor_type": "ViTImageProcessor", "size": 8}, 1, "normalises 3 channels"),
        ({**OWN, "resample": 1}, 4, "filter number 1 on images with alpha"),
        (None, 2, "2 channels"),
    ],
)
def test_what_is_refused_gives_a_reason(
    config: dict[str, object] | None, channels: int, reason: str, tmp_path: Path
) -> None:
    processing = made(tmp_path, config, channels, (8, 8))
    assert processing.graph is None
    assert reason in processing.reason
