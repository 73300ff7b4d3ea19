"""Bundles small enough to build in a test: a two-layer classifier of 8x8 images, and an averaging text encoder.

The reference outputs are computed with numpy, the engine is the graph on ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtimes import portable_session
from toolkit.bundle.write import Contents, write_bundle
from toolkit.drift.measure import measure
from toolkit.drift.report import DriftReport
from toolkit.target import Target
from toolkit.types import Dim, Engine, Gate, LoweredGraph, ModelSpec, Step, TensorSpec

LABELS = tuple(f"digit {index}" for index in range(10))
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "sat", "on", "the", "mat")
GATE = Gate(min_sqnr_db=40.0)


def image_weights():
    """The two matrices of the classifier, [64, 16] and [16, 10]."""
    return _weights((64, 16), 1), _weights((16, 10), 2)


def image_bundle(
    folder, *, status="executed", runtime="ort-cpu", spoil=0.0, gate=GATE, family="vit", source_name="none", **beside
):
    """A vision bundle. `spoil` is added to the stored reference outputs, so that `check` sees that much drift.

    `beside` may hold the `preprocessing` and the `postprocessing`.
    """
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir(parents=True)
    first, second = image_weights()
    inputs = [{"pixel_values": _weights((rows, 1, 8, 8), rows)} for rows in (1, 3)]
    outputs = [{"logits": np.maximum(one["pixel_values"].reshape(-1, 64) @ first, 0) @ second} for one in inputs]
    _save(_image_graph(first, second), source / "model.onnx")
    spec = ModelSpec(
        name="tiny", family=family, kind="vision", task="image-classification", source=source_name, architecture="Tiny",
        inputs=(TensorSpec("pixel_values", "float32", ("batch", 1, 8, 8)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 10)),),
        dims={"batch": Dim(1, 2, 4)}, labels=LABELS,
    )  # fmt: skip
    stored = [{"logits": one["logits"] + np.float32(spoil)} for one in outputs]
    return _bundle(
        folder, source, spec, inputs=inputs, outputs=outputs, stored=stored, status=status, runtime=runtime, gate=gate,
        **beside,
    )  # fmt: skip


def text_bundle(folder: Path) -> Path:
    """An encoder bundle with a word tokenizer, whose embedding is the mean of attended word vectors."""
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir(parents=True)
    table = _weights((len(WORDS), 12), 3)
    ids = np.array([[2, 5, 6, 3], [2, 7, 3, 0]], dtype=np.int64)
    mask = (ids != 0).astype(np.int64)
    weights = mask[..., None].astype(np.float32)
    output = {"embedding": (table[ids] * weights).sum(1) / weights.sum(1)}
    _save(_text_graph(table), source / "model.onnx")
    (source / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    spec = ModelSpec(
        name="tiny-text", family="bert", kind="encoder", task="embedding", source="none", architecture="TinyText",
        inputs=tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")),
        outputs=(TensorSpec("embedding", "float32", ("batch", 12)),),
        dims={"batch": Dim(1, 2, 4), "sequence": Dim(4, 8, 16)},
    )  # fmt: skip
    inputs = [{"input_ids": ids, "attention_mask": mask}]
    return _bundle(
        folder, source, spec, inputs=inputs, outputs=[output], stored=[output], assets=(source / "vocab.txt",)
    )


def _bundle(
    folder, source, spec, *, inputs, outputs, stored, assets=(), status="executed", runtime="ort-cpu", gate=GATE,
    **beside,
):  # fmt: skip
    folder.mkdir(parents=True)
    path = source / "model.onnx"
    lowered = LoweredGraph(path, spec, (Step("lower", "kept as it is", 1),), scheme="fp32", runtime=runtime)
    data = path.with_name("model.onnx.data")
    if status == "executed":
        files = (Path(path.name), Path(data.name))
    else:
        (source / "engine.plan").write_bytes(b"compiled elsewhere")
        files = (Path("engine.plan"),)
    session = portable_session(path)
    stage = measure("build", session.ran_on, outputs, [session.run(one) for one in inputs], spec, gate=GATE)
    session.close()
    reason = "" if status == "executed" else "no such device here"
    contents = Contents(
        spec=spec, target=Target(runtime, "fp32"), engine=Engine(lowered, status, "test builder 1", files, reason),
        report=DriftReport.of("numpy", [stage]), golden=inputs, golden_reference=stored, assets=assets,
        **beside,
    )  # fmt: skip
    write_bundle(folder, contents, command="toolkit export --model tiny", gate=gate)
    return folder


def _weights(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _save(graph, path):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=64)


def _image_graph(first, second):
    nodes = [
        helper.make_node("Flatten", ["pixel_values"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["logits"]),
    ]
    return helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )


def _text_graph(table):
    axis = numpy_helper.from_array(np.array([-1], dtype=np.int64), "last")
    middle = numpy_helper.from_array(np.array([1], dtype=np.int64), "middle")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Unsqueeze", ["attention_mask", "last"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["vectors", "mask"], ["attended"]),
        helper.make_node("ReduceSum", ["attended", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "middle"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["embedding"]),
    ]
    names = ("input_ids", "attention_mask")
    return helper.make_graph(
        nodes,
        "tiny-text",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 12])],
        [numpy_helper.from_array(table, "table"), axis, middle],
    )
