"""bf16: the graph of fp16 in bfloat16, with no calibration, and normalisations in fp32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from quantize_graphs import TOKENS, WIDTH, by_type, float_mask_model, images, run, save_exported, sqnr, vision_model

from quantize import quantize
from quantize.schemes.bf16 import SCHEME
from runtimes import portable_session

SHORT, FULL = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def dtypes(node: ir.Node) -> set[ir.DataType]:
    values = [*node.inputs, *node.outputs]
    return {value.dtype for value in values if value is not None and value.dtype in (SHORT, FULL)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bf16")
    exported = save_exported(vision_model(), folder)
    return exported, quantize(exported, "bf16", None, folder / "out")


def test_compute_is_bfloat16_and_normalisation_full(written) -> None:
    onnx.checker.check_model(written[1].path, full_check=True)
    model = ir.load(written[1].path)
    for op_type, dtype in (("MatMul", SHORT), ("Conv", SHORT), ("FusedAttention", SHORT), ("LayerNormalization", FULL)):
        assert by_type(model, op_type)
        assert all(dtypes(node) == {dtype} for node in by_type(model, op_type))
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == [FULL, FULL]


def test_weights_are_rounded_to_the_nearest(written) -> None:
    before, after = (ir.load(graph.path).graph.initializers["block.fc1.weight"] for graph in written)
    bits = before.const_value.numpy().view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    np.testing.assert_array_equal(after.const_value.numpy().view(np.uint16), rounded)


def test_the_emulated_graph_stays_near_and_says_that_it_is_emulated(written) -> None:
    exported, made = written
    session = portable_session(made.path)
    assert session.ran_on.endswith("CPUExecutionProvider, bfloat16 emulated in float32")
    feed = dict(next(images(1, seed=9).batches()))
    assert 30 < sqnr(run(exported.path, feed)["logits"], session.run(feed)["logits"]) < 70


def test_what_overflows_fp16_needs_no_exception(tmp_path) -> None:
    exported = save_exported(vision_model(gain=3e5), tmp_path)
    made = quantize(exported, "bf16", None, tmp_path / "out")
    kept = {step.what for step in made.steps if step.what.startswith("kept in fp32")}
    assert kept == {"kept in fp32: normalisation", "kept in fp32: residual stream"}
    feed = dict(next(images(1, seed=9).batches()))
    assert sqnr(run(exported.path, feed)["logits"], portable_session(made.path).run(feed)["logits"]) > 30


def test_a_float_mask_keeps_its_meaning(tmp_path) -> None:
    exported = save_exported(float_mask_model(), tmp_path)
    made = quantize(exported, "bf16", None, tmp_path / "out")
    rng = np.random.default_rng(3)
    keep = np.ones((2, 1, 1, TOKENS), bool)
    keep[1, :, :, 9:] = False
    closed = np.zeros((2, 1, TOKENS, 1), bool)
    closed[0, 0, 4] = True
    feed = {"x": rng.normal(size=(2, TOKENS, WIDTH)).astype(np.float32), "keep": keep, "closed": closed}
    expected, got = run(exported.path, feed), portable_session(made.path).run(feed)
    for name, array in expected.items():
        assert np.isfinite(got[name]).all()
        assert sqnr(array, got[name]) > 30


def test_a_mask_of_the_lowest_number_stays_finite(tmp_path) -> None:
    """bfloat16 would round float32's lowest number to -inf: a row with nothing to attend to would be NaN."""
    model = ir.from_onnx_text("""<ir_version: 11, opset_import: ["": 23]>
    g (bool[2, 1, 4] mask, float[2, 4, 4] x) => (float[2, 4, 4] y) <float low = {-3.4028235e38}, float zero = {0}> {
      bias = Where (mask, zero, low)
      scores = MatMul (x, x)
      sum = Add (scores, bias)
      shares = Softmax (sum)
      y = MatMul (shares, x)
    }""")
    made = SCHEME.apply(model, None, None, {})  # type: ignore[arg-type]
    (kept,) = [step for step in made if step.what == "kept in fp32: constant"]
    assert (kept.count, kept.reason.count("low is beyond 3.39e38")) == (2, 2)
    assert [dtypes(node) for node in by_type(model, "MatMul")] == [{SHORT}, {SHORT}]
    ir.save(model, tmp_path / "m.onnx")
    x = np.arange(32, dtype=np.float32).reshape(2, 4, 4) / 8
    got = portable_session(tmp_path / "m.onnx").run({"mask": np.zeros((2, 1, 4), bool), "x": x})["y"]
    np.testing.assert_array_equal(got, x.mean(axis=1, keepdims=True).repeat(4, axis=1))
