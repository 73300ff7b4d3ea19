"""fp16: a strongly typed graph, and everything that half precision cannot hold kept in fp32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from quantize_graphs import (
    SPEC,
    TOKENS,
    WIDTH,
    Builder,
    by_type,
    float_mask_model,
    graph_input,
    images,
    run,
    save_exported,
    sqnr,
    vision_model,
)

from quantize import quantize
from quantize.half_cast import MASK_FLOOR
from quantize.schemes.fp16 import SCHEME
from toolkit.errors import StageError, UsageError
from toolkit.types import Calibration

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


def step(steps, what):
    return next((step for step in steps if step.what == what), None)


def calibration(batch):
    return Calibration(lambda: iter([batch]), 1, "test")


def dtypes(node):
    values = [*node.inputs, *node.outputs]
    return {value.dtype for value in values if value is not None and value.dtype in (HALF, FULL)}


def mixed(model):
    """Nodes, other than those whose job it is, that see both precisions."""
    return [node for node in model.graph if node.op_type != "Cast" and len(dtypes(node)) > 1]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp16")
    exported = save_exported(vision_model(), folder)
    return exported, quantize(exported, "fp16", images(3), folder / "out")


def test_compute_is_half_and_normalisation_full(written):
    model = ir.load(written[1].path)
    for op_type in ("MatMul", "Gemm", "Conv", "FusedAttention", "Gelu"):
        assert by_type(model, op_type)
        assert all(dtypes(node) == {HALF} for node in by_type(model, op_type))
    for op_type in ("LayerNormalization", "ReduceMean"):
        assert by_type(model, op_type)
        assert all(dtypes(node) == {FULL} for node in by_type(model, op_type))
    assert mixed(model) == []


def test_types_are_those_that_shape_inference_finds(written):
    onnx.checker.check_model(written[1].path, full_check=True)
    proto = onnx.load(written[1].path)
    declared = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    found = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    outputs = {name for node in proto.graph.node for name in node.output}
    assert found.keys() == outputs - {"logits"}
    assert {name: declared[name] for name in found} == found


def test_inputs_and_outputs_keep_their_dtype_and_values_stay_near(written):
    exported, made = written
    session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    kinds = [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())]
    assert kinds == [("image", "tensor(float)"), ("logits", "tensor(float)")]
    feed = dict(next(images(1, seed=9).batches()))
    assert sqnr(run(exported.path, feed)["logits"], run(made.path, feed)["logits"]) > 50


def test_weights_are_halved_and_the_function_is_there(written):
    exported, made = written
    sizes = [graph.path.with_name(f"{graph.path.name}.data").stat().st_size for graph in (exported, made)]
    assert sizes[1] < 0.53 * sizes[0]
    model = ir.load(made.path)
    assert ("toolkit", "FusedAttention", "") in model.functions
    assert model.graph.initializers["block.fc1.weight"].dtype == HALF


def test_what_overflows_on_calibration_stays_fp32_with_the_reason():
    gain = 3e5
    model, original = vision_model(gain), vision_model(gain)
    steps = SCHEME.apply(model, SPEC, images(3), {})
    kept = step(steps, "kept in fp32: range")
    assert kept is not None
    assert "block.fc2" in kept.reason
    assert "reached" in kept.reason
    assert mixed(model) == []
    fc2 = next(node for node in by_type(model, "MatMul") if node.inputs[1].name == "block.fc2.weight")
    assert dtypes(fc2) == {FULL}
    feed = dict(next(images(1, seed=9).batches()))
    assert sqnr(run(original, feed)["logits"], run(model, feed)["logits"]) > 50


def test_a_constant_beyond_fp16_keeps_its_node_fp32():
    model = vision_model(gain=1e5)
    zero = model.graph.initializers["block.fc1.weight"].const_value.numpy()
    zero *= 1e-6
    model.graph.initializers["block.fc1.bias"].const_value.numpy()[:] = 0
    steps = SCHEME.apply(model, SPEC, images(2), {})
    assert "gain is beyond 65504" in step(steps, "kept in fp32: constant").reason


def test_an_epsilon_that_fp16_would_flush_to_zero_keeps_its_node_fp32():
    b = Builder()
    x = graph_input("x", ["batch", WIDTH])
    y = b.linear(x, "first", WIDTH, WIDTH)
    shifted = b.op("Add", b.op("Abs", y), b.weight("epsilon", np.float32(1e-12)), module="shift")
    model = b.model([x], {"y": b.linear(shifted, "second", WIDTH, WIDTH)})
    steps = SCHEME.apply(model, SPEC, calibration({"x": np.ones((2, WIDTH), np.float32)}), {})
    assert step(steps, "kept in fp32: constant").reason == "Add of shift: epsilon would lose 100.0%"
    assert model.graph.initializers["epsilon"].dtype == FULL
    assert mixed(model) == []


def test_a_norm_written_out_in_parts_stays_fp32():
    b = Builder()
    x = graph_input("x", ["batch", WIDTH])
    y = b.linear(x, "first", WIDTH, WIDTH)
    axes = b.weight("axes", np.array([-1], np.int64))
    squares = b.op("ReduceMean", b.op("Mul", y, y), axes, module="norm")
    inverse = b.op("Reciprocal", b.op("Sqrt", b.op("Add", squares, b.weight("epsilon", np.float32(1e-3)))))
    scaled = b.op("Mul", y, inverse, module="norm")
    model = b.model([x], {"y": b.linear(scaled, "second", WIDTH, WIDTH)})
    SCHEME.apply(model, SPEC, calibration({"x": np.ones((2, WIDTH), np.float32)}), {})
    assert dtypes(scaled.producer()) == {FULL}
    assert all(dtypes(node) == {HALF} for node in by_type(model, "MatMul"))
    assert mixed(model) == []


def mask_feed():
    rng = np.random.default_rng(3)
    keep = np.ones((2, 1, 1, TOKENS), bool)
    keep[1, :, :, 9:] = False
    closed = np.zeros((2, 1, TOKENS, 1), bool)
    closed[0, 0, 4] = True
    return {"x": rng.normal(size=(2, TOKENS, WIDTH)).astype(np.float32), "keep": keep, "closed": closed}


def test_a_float_mask_keeps_its_meaning(tmp_path):
    exported = save_exported(float_mask_model(), tmp_path)
    made = quantize(exported, "fp16", calibration(mask_feed()), tmp_path / "out")
    model = ir.load(made.path)
    assert dtypes(by_type(model, "FusedAttention")[0]) == {HALF}
    assert mixed(model) == []
    before, after = (run(path, mask_feed())["y"] for path in (exported.path, made.path))
    assert np.isfinite(after).all()
    assert sqnr(before, after) > 50
    bias = model.graph.initializers["attention.out_proj.bias"].const_value.numpy()
    np.testing.assert_array_equal(after[0, 4], bias.astype(np.float32))


def test_a_constant_mask_is_clamped_where_it_is_stored():
    b = Builder()
    x = graph_input("x", ["batch", TOKENS, WIDTH])
    causal = np.triu(np.full((TOKENS, TOKENS), np.finfo(np.float32).min, np.float32), 1)
    causal[0, 1:] = -np.inf
    model = b.model([x], {"y": b.attention(x, "attention", b.weight("causal", causal))})
    SCHEME.apply(model, SPEC, calibration({"x": mask_feed()["x"]}), {})
    mask = by_type(model, "FusedAttention")[0].inputs[3].const_value.numpy()
    assert mask.dtype == np.float16
    assert np.isneginf(mask[0, 1:]).all()
    assert set(np.unique(mask[1:])) == {-MASK_FLOOR, 0.0}


def test_an_attention_whose_keys_overflow_runs_in_fp32():
    model = vision_model()
    model.graph.initializers["block.attention.k_proj.weight"].const_value.numpy()[:] *= 1e5
    SCHEME.apply(model, SPEC, images(2), {})
    assert dtypes(by_type(model, "FusedAttention")[0]) == {FULL}
    assert mixed(model) == []


@pytest.mark.parametrize("masked", [False, True])
def test_one_attention_whose_scores_overflow_runs_in_fp32_and_the_other_does_not(masked):
    b = Builder()
    x = graph_input("x", ["batch", TOKENS, WIDTH])
    causal = b.weight("causal", np.triu(np.full((TOKENS, TOKENS), -np.inf, np.float32), 1)) if masked else None
    y = b.op("Add", b.attention(x, "first", causal), x)
    result = b.op("Add", b.attention(y, "second", causal), y)
    model = b.model([x], {"y": result}, y=["batch", TOKENS, WIDTH])
    for name in ("q_proj", "k_proj"):
        model.graph.initializers[f"second.{name}.weight"].const_value.numpy()[:] *= 300
    feed = {"x": mask_feed()["x"]}
    before = run(model, feed)["y"]
    steps = SCHEME.apply(model, SPEC, calibration(feed), {})
    assert [dtypes(node) for node in by_type(model, "FusedAttention")] == [{HALF}, {FULL}]
    assert step(steps, "kept in fp32: scores").reason.startswith("FusedAttention of second: |q·kᵀ·scale| reached")
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert sqnr(before, run(model, feed)["y"]) > 50


def test_an_output_that_is_also_read_inside_comes_out_as_fp32():
    b = Builder()
    x = graph_input("x", ["batch", WIDTH])
    hidden = b.linear(x, "first", WIDTH, WIDTH)
    y = b.linear(hidden, "second", WIDTH, WIDTH)
    model = b.model([x], {"hidden": hidden, "y": y})
    feed = {"x": np.linspace(-1, 1, 2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)}
    before = run(model, feed)
    SCHEME.apply(model, SPEC, calibration(feed), {})
    after = run(model, feed)
    for name in ("hidden", "y"):
        assert after[name].dtype == np.float32
        assert sqnr(before[name], after[name]) > 50
    assert sum(node.op_type == "Cast" for node in model.graph) == 3


def test_token_ids_stay_integers_and_the_table_is_halved():
    b = Builder()
    ids = graph_input("ids", ["batch", 4], ir.DataType.INT64)
    rows = b.op("Gather", b.random("embedding.weight", 50, WIDTH), ids)
    model = b.model([ids], {"y": b.linear(rows, "first", WIDTH, WIDTH)})
    SCHEME.apply(model, SPEC, calibration({"ids": np.array([[1, 2, 3, 49]])}), {})
    assert model.graph.inputs[0].dtype == ir.DataType.INT64
    assert model.graph.initializers["embedding.weight"].dtype == HALF


def test_calibration_is_needed_and_nan_is_named():
    with pytest.raises(UsageError, match=r"'fp16'.*no calibration"):
        SCHEME.apply(vision_model(), SPEC, None, {})
    model = vision_model()
    model.graph.initializers["block.fc1.bias"].const_value.numpy()[0] = np.nan
    with pytest.raises(StageError, match=r"block\.fc1.*NaN"):
        SCHEME.apply(model, SPEC, images(1), {})
