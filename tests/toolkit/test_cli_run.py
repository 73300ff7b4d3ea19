"""`toolkit run`: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_bundles import LABELS, image_bundle, text_bundle

from toolkit import answers, plugins
from toolkit.bundle.read import golden, open_bundle
from toolkit.cli import main
from toolkit.errors import UnsupportedError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    image_bundle(folder / "image")
    text_bundle(folder / "text")
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def toolkit(*arguments, stdin=None):
    return CliRunner().invoke(main, ["run", *map(str, arguments)], input=stdin)


def answer(*arguments, stdin=None):
    result = toolkit(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_images_give_their_likeliest_labels(root):
    found = answer(root / "image", root / "0.png", root / "1.png", "--top-k", 3)
    assert [row["input"] for row in found["rows"]] == [str(root / "0.png"), str(root / "1.png")]
    for row in found["rows"]:
        shares = [entry["probability"] for entry in row["labels"]]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)
        assert all(entry["label"] == LABELS[entry["index"]] for entry in row["labels"])
    shown = toolkit(root / "image", root / "0.png").stdout
    assert found["rows"][0]["labels"][0]["label"] in shown


def test_raw_tensors_give_what_the_reference_gave(root, tmp_path):
    inputs, expected = golden(open_bundle(root / "image"))
    np.savez(tmp_path / "in.npz", **inputs[1])
    result = toolkit(root / "image", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "out.npz") as stored:
        np.testing.assert_allclose(stored["logits"], expected[1]["logits"], rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz"]


def test_texts_give_embeddings_and_their_similarities(root, tmp_path):
    found = answer(root / "text", "a cat", "a dog", "a cat")
    assert [row["embedding"]["dims"] for row in found["rows"]] == [12, 12, 12]
    similar = np.array(found["cosine"])
    np.testing.assert_allclose(np.diag(similar), 1, atol=1e-6)
    assert similar[0, 2] == pytest.approx(1, abs=1e-6)
    assert similar[0, 1] < 0.999
    (tmp_path / "lines.txt").write_text("a cat\n\na dog\n")
    assert answer(root / "text", f"@{tmp_path / 'lines.txt'}")["rows"] == found["rows"][:2]
    assert answer(root / "text", "-", stdin="a cat\na dog\n")["rows"] == found["rows"][:2]
    assert "cosine similarity" in toolkit(root / "text", "a cat", "a dog").stdout


def test_a_text_alone_is_padded_to_the_shortest_sequence_without_changing_it(root):
    alone = answer(root / "text", "cat")["rows"][0]["embedding"]
    beside = answer(root / "text", "cat", "the cat sat on the mat")["rows"][0]["embedding"]
    np.testing.assert_allclose(alone["first"], beside["first"], atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "'pixel_values' is missing"),
        ({"pixel_values": np.zeros((1, 1, 8, 8), np.float32), "more": np.zeros(1)}, "'more' is unknown"),
        ({"pixel_values": np.zeros((1, 1, 8, 8))}, "float64"),
        ({"pixel_values": np.zeros((1, 8, 8), np.float32)}, "[1, 8, 8]"),
        ({"pixel_values": np.zeros((1, 1, 8, 9), np.float32)}, "has 9 where the model has 8"),
        (
            {"pixel_values": np.zeros((5, 1, 8, 8), np.float32)},
            "'batch' of input 'pixel_values' is 5, outside its range 1 to 4",
        ),
        ({"pixel_values": np.zeros((0, 1, 8, 8), np.float32)}, "outside its range 1 to 4"),
    ],
)
def test_wrong_tensors_are_refused_by_name(root, tmp_path, arrays, words):
    np.savez(tmp_path / "in.npz", **arrays)
    result = toolkit(root / "image", tmp_path / "in.npz")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "hint:" in result.stderr


def test_a_dimension_must_be_the_same_in_all_inputs(root, tmp_path):
    np.savez(tmp_path / "in.npz", input_ids=np.zeros((1, 8), np.int64), attention_mask=np.zeros((1, 9), np.int64))
    result = toolkit(root / "text", tmp_path / "in.npz")
    assert result.exit_code == 2
    assert "'sequence' is 9" in result.stderr


class Trap:
    """Unpickling this leaves a mark."""

    def __reduce__(self):
        return (exec, ("import builtins; builtins.sprung = True",))


def test_pickled_objects_are_refused_and_not_loaded(root, tmp_path):
    import builtins

    np.savez(tmp_path / "in.npz", pixel_values=np.array([Trap()], dtype=object))
    result = toolkit(root / "image", tmp_path / "in.npz")
    assert result.exit_code == 2
    assert "plain arrays" in result.stderr
    assert not hasattr(builtins, "sprung")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY\x01\x00", b"words"])
def test_what_is_no_npz_is_refused(root, tmp_path, content):
    (tmp_path / "in.npz").write_bytes(content)
    result = toolkit(root / "image", tmp_path / "in.npz")
    assert result.exit_code == 2, result.output
    assert str(tmp_path / "in.npz") in result.stderr


@pytest.mark.parametrize("content", [b"", b"words", b"\x89PNG\r\n\x1a\n cut"])
def test_an_image_that_is_none_is_refused(root, tmp_path, content):
    (tmp_path / "no.png").write_bytes(content)
    result = toolkit(root / "image", tmp_path / "no.png")
    assert result.exit_code == 2
    assert str(tmp_path / "no.png") in result.stderr
    assert toolkit(root / "image", tmp_path / "nowhere.png").exit_code == 2


def test_too_many_images_name_the_dimension_and_its_range(root):
    result = toolkit(root / "image", *(root / f"{index}.png" for index in range(5)))
    assert result.exit_code == 2
    assert "'batch'" in result.stderr
    assert "1 to 4" in result.stderr


@pytest.mark.parametrize("arguments", [["-"], ["@nowhere.txt"]])
def test_no_text_is_refused(root, arguments):
    assert toolkit(root / "text", *arguments, stdin="\n\n").exit_code == 2


def test_an_output_that_cannot_be_written_leaves_nothing(root, tmp_path):
    result = toolkit(root / "image", root / "0.png", "--output", tmp_path / "nowhere" / "out.npz")
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_an_engine_without_its_device_points_to_its_graph(tmp_path, root, monkeypatch):
    class Elsewhere:
        def session(self, folder, engine):
            raise UnsupportedError("there is no such device", hint="Buy one.")

    bundle = image_bundle(tmp_path / "built", status="built")
    monkeypatch.setattr(plugins, "runtime", lambda name: Elsewhere())
    result = toolkit(bundle, root / "0.png")
    assert result.exit_code == 4
    assert "cannot run here: there is no such device" in result.stderr
    assert "--on-cpu" in result.stderr
    found = answer(bundle, root / "0.png", "--on-cpu")
    assert "CPUExecutionProvider" in found["ran_on"]
    assert found["rows"] == answer(root / "image", root / "0.png", "--on-cpu")["rows"]


def test_summaries_count_what_is_not_finite():
    array = np.array([[1.0, np.nan], [np.inf, 3.0]], dtype=np.float32)
    assert answers.summaries({"x": array}) == [
        {"name": "x", "dtype": "float32", "shape": [2, 2], "min": 1.0, "max": 3.0, "mean": 2.0, "not_finite": 2}
    ]
    assert answers.summaries({"x": np.zeros((0, 3), np.float32)})[0]["min"] is None


def test_probabilities_hold_for_large_logits():
    (row,) = answers.top_labels(np.array([[1000.0, 1000.0, -1000.0]], np.float32), ("a", "b"), 3)
    assert [entry["label"] for entry in row] == ["a", "b", "2"]
    assert [entry["probability"] for entry in row] == pytest.approx([0.5, 0.5, 0.0])
