"""What the JavaScript computes by itself is what the toolkit computes: tensors, drift, padding, rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from js_programs import NODE, values_of, written
from onnx import TensorProto, helper, numpy_helper
from tiny_bundles import image_bundle

from toolkit.drift import metrics
from toolkit.drift.padding import at_attended
from toolkit.types import Dim, ModelSpec, TensorSpec

pytestmark = pytest.mark.skipif(not NODE, reason="there is no node here")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A Node program without its node_modules: what is tested here needs none."""
    root = tmp_path_factory.mktemp("node")
    return written("node", [image_bundle(root / "bundle")], root / "program")


def test_tensors_are_read_as_onnx_writes_them(program, tmp_path):
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    arrays = {
        "float32": np.array([[1.5, -0.0, 3e38]], np.float32), "float64": np.array(2.5), "float16": halves,
        "int8": np.array([-128, 127], np.int8), "uint8": np.array([255], np.uint8), "bool": np.array([True, False]),
        "int16": np.array([-5], np.int16), "uint16": np.array([65535], np.uint16), "int32": np.array([-7], np.int32),
        "uint32": np.array([2**32 - 1], np.uint32), "int64": np.array([[-(2**63)], [2**53 + 1]]),
        "uint64": np.array([2**64 - 1], np.uint64), "string": np.array(["", "ä😀"], object),
        "empty": np.zeros((2, 0, 3), np.float32),
    }  # fmt: skip
    for name, array in arrays.items():
        (tmp_path / f"{name}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    for kind in ("FLOAT", "DOUBLE", "INT32", "INT64", "UINT64", "UINT8", "BOOL", "FLOAT16"):
        tensor = helper.make_tensor(f"typed {kind}", getattr(TensorProto, kind), [3], [1, 0, 1])
        assert not tensor.raw_data
        (tmp_path / f"typed-{kind}.pb").write_bytes(tensor.SerializeToString())
    found = values_of(program, "js_tensors.mjs", tmp_path)
    for name, array in arrays.items():
        kind, dims, values = found[name]
        assert kind == {"string": "string", "empty": "float32"}.get(name, array.dtype.name)
        assert dims == list(array.shape)
        if name == "string":
            assert values == array.tolist()
        elif array.dtype.kind == "f":
            read = np.array([float(each.replace("Infinity", "inf")) for each in values])
            np.testing.assert_array_equal(read, array.astype(np.float64).ravel())
        else:
            assert [int(each) for each in values] == [int(each) for each in array.ravel()]
    typed = [values for name, (_, _, values) in found.items() if name.startswith("typed")]
    assert typed == [["1", "0", "1"]] * 8


def _cases():
    random = np.random.default_rng(3)
    reference = random.standard_normal((2, 5, 7)).astype(np.float32)
    noisy = reference + random.normal(0, 0.05, reference.shape).astype(np.float32)
    broken = noisy.copy()
    broken[0, 0, :3] = [np.nan, np.inf, -np.inf]
    return {
        "reference": reference, "noisy": noisy, "zeros": np.zeros_like(reference), "halves": noisy.astype(np.float16),
        "broken": broken, "wider": np.zeros((2, 5, 8), np.float32), "longs": np.array([[2**60, -3]]),
        "longs2": np.array([[2**60 + 4096, -1]]), "huge": np.full((2, 5, 7), 1e101),
        "mask": np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]), "ids": np.arange(1, 7).reshape(2, 3),
    }  # fmt: skip


def test_drift_padding_and_rows_are_computed_as_the_toolkit_does(program, tmp_path):
    arrays = _cases()
    for name, array in arrays.items():
        (tmp_path / f"{name}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    names = [
        ("reference", "noisy"), ("reference", "reference"), ("zeros", "noisy"), ("noisy", "zeros"),
        ("zeros", "zeros"), ("reference", "halves"), ("longs", "longs2"),
    ]  # fmt: skip
    spec = ModelSpec(
        name="m", family="f", kind="encoder", task="t", source="s", architecture="a", dims={"b": Dim(1, 2, 2)},
        inputs=(TensorSpec("attention_mask", "int64", ("b", "total")), TensorSpec("input_ids", "int64", ("b", "s"))),
        outputs=(TensorSpec("hidden", "float32", ("b", "s", 7)),),
    )  # fmt: skip
    as_json = {
        word: [{"name": each.name, "dtype": each.dtype, "shape": each.shape} for each in getattr(spec, word)]
        for word in ("inputs", "outputs")
    }
    model = {
        "inputs": [{"name": "ids", "shape": ["b", "s"]}],
        "outputs": [{"name": "hidden", "shape": ["b", "s"]}, {"name": "pooled", "shape": ["b", 1]}],
    }
    engine = [{"name": "ids", "dtype": "int64", "shape": [1, 5]}]
    bad = [("reference", "broken", None), ("reference", "wider", None), ("reference", "huge", None)]
    pairs = [(*pair, None) for pair in names] + [("reference", "noisy", "mask"), ("reference", "broken", "mask"), *bad]
    cases = {"pairs": pairs, "padded": as_json, "rows": {"engine": engine, "model": model}}
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    found = values_of(program, "js_drift.mjs", tmp_path)
    kept = [
        at_attended([{"hidden": arrays[name]}], [{"attention_mask": arrays["mask"]}], spec)[0]["hidden"]
        for name in ("reference", "noisy")
    ]
    expected = [metrics.moments(arrays[one], arrays[other]) for one, other in names] + [metrics.moments(*kept)]
    for want, (*have, defect) in zip(expected, found["compared"], strict=False):
        numbers = [float(each.replace("Infinity", "inf")) for each in have]
        assert numbers == pytest.approx([want.sqnr_db, want.cosine, want.relative_l2, want.peak], rel=1e-9)
        assert defect == ""
    assert not np.array_equal(kept[0], arrays["reference"])
    assert [each[-1] for each in found["compared"][len(expected) :]] == [
        "has 3 values that are NaN, infinite or above 1e100",
        "has 3 values that are NaN, infinite or above 1e100",
        "has shape [2, 5, 8], the reference has [2, 5, 7]",
        "has 70 values that are NaN, infinite or above 1e100",
    ]
    assert found["seen"] == ["1,5", "1,5"]
    assert found["rows"] == [[2, 3], ["1", "2", "3", "4", "5", "6"], [2, 1], ["1", "4"]]
