"""Golden inputs and evaluations on disk: they come back as they were, and broken files are said to be broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toolkit.bundle.testdata import (
    read_evaluation,
    read_golden,
    read_sets,
    write_evaluation,
    write_golden,
    write_sets,
)
from toolkit.errors import UsageError
from toolkit.types import Dim, Evaluation, ModelSpec, TensorSpec

SPEC = ModelSpec(
    name="tiny",
    family="test",
    kind="module",
    task="raw",
    source="tests:tiny",
    architecture="Tiny",
    inputs=(TensorSpec("x", "float32", ("batch", 4)), TensorSpec("shift", "int64", ())),
    outputs=(TensorSpec("y", "float32", ("batch", 3)),),
    dims={"batch": Dim(1, 2, 8)},
)
ANSWER = {"y": np.zeros((1, 3), np.float32)}


def batch(seed: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((1, 4)).astype(np.float32)
    return {"x": x, "shift": np.array(seed, np.int64)}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool"])
def test_test_data_of_every_dtype_and_layout(tmp_path: Path, dtype: str) -> None:
    value = (np.arange(24).reshape(4, 6).T % 3).astype(dtype)
    spec = replace(SPEC, inputs=(TensorSpec("x", dtype, (6, 4)),), outputs=(TensorSpec("y", dtype, ()),))
    given, expected = {"x": value}, {"y": value[0, 1]}
    files = write_golden(tmp_path, [given] * 11, [expected] * 11, spec)
    assert len(files) == 22
    inputs, outputs = read_golden(tmp_path)
    assert len(inputs) == 11
    np.testing.assert_array_equal(inputs[10]["x"], value)
    assert inputs[10]["x"].dtype == value.dtype
    assert outputs[10]["y"].shape == ()
    write_evaluation(tmp_path / "e", Evaluation("retrieval", (given,)), [expected], "y")
    held_out, reference = read_evaluation(tmp_path / "e")
    np.testing.assert_array_equal(held_out.batches[0]["x"], value)
    assert reference[0]["y"].shape == ()


def test_data_sets_come_back_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    inputs = [batch(seed) for seed in range(12)]
    write_golden(tmp_path, inputs, [ANSWER] * 12, SPEC)
    assert [int(given["shift"]) for given in read_golden(tmp_path)[0]] == list(range(12))


def test_test_data_needs_every_tensor_of_the_spec(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lack shift"):
        write_golden(tmp_path, [{"x": batch(0)["x"]}], [ANSWER], SPEC)


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x08"])
def test_a_file_that_is_no_tensor_is_a_usage_error(tmp_path: Path, data: bytes) -> None:
    write_golden(tmp_path, [batch(0)], [ANSWER], SPEC)
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(data)
    with pytest.raises(UsageError, match=r"input_0\.pb is no ONNX tensor"):
        read_golden(tmp_path)


def test_a_tensor_whose_data_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    import onnx

    tensor = onnx.TensorProto(name="x", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../secret")
    write_golden(tmp_path, [batch(0)], [ANSWER], SPEC)
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(UsageError, match="in another file"):
        read_golden(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x10\0\0\0\0\0\0\0{}", b"nonsense" * 4])
def test_a_broken_evaluation_is_a_usage_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "e").write_bytes(data)
    with pytest.raises(UsageError, match="evaluation"):
        read_evaluation(tmp_path / "e")


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "e")
    with pytest.raises(UsageError, match="no evaluation file"):
        read_evaluation(tmp_path / "e")


def test_texts_are_kept_as_utf8_whatever_the_array_is_made_of(tmp_path: Path) -> None:
    spec = (TensorSpec("text", "string", ("batch",)),)
    texts = ["", "naïve 👍🏽 東京", "tab\tline\n\ufeff\uffff"]
    given = [{"text": np.array(texts)}, {"text": np.array(texts, dtype=object)}]
    write_sets(tmp_path, "preprocess_data_set_", given, given, (spec, spec))
    for tensors in (*read_sets(tmp_path, "preprocess_data_set_")[0], *read_sets(tmp_path, "preprocess_data_set_")[1]):
        assert tensors["text"].tolist() == texts
        assert tensors["text"].dtype == object
    assert "東京".encode() in (tmp_path / "preprocess_data_set_0" / "input_0.pb").read_bytes()
