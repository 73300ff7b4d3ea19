"""The quantize stage: what it writes, and what it refuses."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import onnx_ir as ir
import pytest
from quantize_graphs import Builder, graph_input, images, save_exported, vision_model

from quantize import quantize
from quantize.schemes import int8
from toolkit.errors import StageError, UsageError
from toolkit.hashing import file_sha256, graph_sha256
from toolkit.types import Step


def elementwise(folder, dtype=ir.DataType.FLOAT):
    b = Builder()
    x = graph_input("x", ["batch", 4], dtype)
    return save_exported(b.model([x], {"y": b.op("Abs", x, dtype=dtype)}), folder)


def test_fp32_keeps_the_exported_file(tmp_path):
    exported = save_exported(vision_model(), tmp_path)
    made = quantize(exported, "fp32", None, tmp_path / "out")
    assert (made.path, made.sha256, made.scheme) == (exported.path, exported.sha256, "fp32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["int8", "int8-dynamic", "fp16", "int4"])
def test_a_scheme_that_changes_no_node_is_an_error(tmp_path, name):
    exported = elementwise(tmp_path)
    batches = replace(images(1), batches=lambda: iter([{"x": next(images(1).batches())["image"][0, 0, :, :4]}]))
    with pytest.raises(StageError, match=f"scheme '{name}' changed no node") as caught:
        quantize(exported, name, batches, tmp_path / "out")
    assert "fp32" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_excluding_everything_is_the_same_error_and_names_the_patterns(tmp_path, monkeypatch):
    exported = save_exported(vision_model(), tmp_path)
    monkeypatch.setattr(int8, "SCHEME", replace(int8.SCHEME, config=replace(int8.SCHEME.config, exclude=("*",))))
    with pytest.raises(StageError, match="changed no node") as caught:
        quantize(exported, "int8", images(1), tmp_path / "out")
    assert "Exclude patterns: *." in caught.value.hint


def test_steps_are_appended_and_the_hash_is_that_of_the_files(tmp_path):
    before = Step("export", "FusedAttention", 1)
    exported = replace(save_exported(vision_model(), tmp_path), steps=(before,))
    made = quantize(exported, "int8-dynamic", None, tmp_path / "out")
    assert made.steps[0] == before
    assert {step.stage for step in made.steps[1:]} == {"quantize"}
    data = (tmp_path / "out" / "model.onnx").read_bytes() + (tmp_path / "out" / "model.onnx.data").read_bytes()
    assert made.sha256 == hashlib.sha256(data).hexdigest() == graph_sha256(made.path)
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_equal_input_gives_equal_bytes(tmp_path):
    exported = save_exported(vision_model(), tmp_path)
    made = [quantize(exported, "int8", images(2), tmp_path / name) for name in ("a", "b")]
    assert made[0].sha256 == made[1].sha256


def test_a_graph_may_be_written_over_the_one_it_came_from(tmp_path):
    exported = save_exported(vision_model(), tmp_path / "exported")
    ir.save(ir.load(exported.path), tmp_path / "model.onnx", external_data="model.onnx.data")
    source = replace(exported, path=tmp_path / "model.onnx")
    made = quantize(source, "int8-dynamic", None, tmp_path)
    assert ir.load(made.path).graph.initializers["block.fc1.weight_int8"].const_value.numpy().any()


def test_unknown_scheme_and_unreadable_graph(tmp_path):
    exported = save_exported(vision_model(), tmp_path)
    with pytest.raises(UsageError, match="unknown scheme 'int9'"):
        quantize(exported, "int9", None, tmp_path / "out")
    exported.path.write_bytes(b"\x08not a graph")
    with pytest.raises(StageError, match="cannot read"):
        quantize(exported, "int8-dynamic", None, tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_a_stage_error(tmp_path):
    exported = save_exported(vision_model(), tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StageError, match="cannot write"):
        quantize(exported, "int8-dynamic", None, tmp_path / "file" / "out")


def test_hash_of_a_graph_without_data_is_that_of_the_file(tmp_path):
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"graph")
    assert graph_sha256(path) == file_sha256(path) == hashlib.sha256(b"graph").hexdigest()
