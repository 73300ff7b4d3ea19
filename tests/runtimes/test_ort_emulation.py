"""Number types that ONNX Runtime's CPU lacks: the emulated graph against arithmetic by ml_dtypes, and its honesty."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from runtimes import portable_session
from runtimes._onnxruntime.emulation import emulated, what_is_emulated
from runtimes._onnxruntime.operators import contents
from toolkit.errors import StageError

SHORT, FOUR = ir.DataType.BFLOAT16, ir.DataType.FLOAT4E2M1
RNG = np.random.default_rng(0)

BF16_CHAIN = """
<ir_version: 11, opset_import: ["": 23, "local": 1]>
chain (float[B, 8] x, bfloat16[8, 4] w) => (float[B, 4] y, float[B, 8] z)
{
  h = Cast <to = 16> (x)
  t = local.Twice (h)
  c = Concat <axis = 1> (t, h)
  one, two = Split <axis = 1, num_outputs = 2> (c)
  s = Add (one, two)
  m = MatMul (s, w)
  y = Cast <to = 1> (m)
  z = Cast <to = 1> (s)
}
<domain: "local", opset_import: ["": 23]>
Twice (a) => (b)
{
  number = Constant <value_float = 2.1> ()
  factor = CastLike (number, a)
  b = Mul (a, factor)
}
"""


def saved(model: ir.Model, path: Path, *, apart: bool = False) -> Path:
    ir.save(model, path, external_data=f"{path.name}.data" if apart else None, size_threshold_bytes=0)
    return path


def short(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def chain(weight: NDArray[np.float32]) -> ir.Model:
    """x · 2.1 + x, then a product, all in bfloat16; a function of its own does the first part."""
    model = ir.from_onnx_text(BF16_CHAIN)
    value = model.graph.inputs.pop(1)
    value.const_value = ir.tensor(weight.astype(ml_dtypes.bfloat16), dtype=SHORT, name="w")
    model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("apart", [False, True], ids=["inside", "beside"])
def test_bfloat16_is_rounded_after_every_operator(apart: bool, tmp_path: Path) -> None:
    weight = RNG.standard_normal((8, 4)).astype(np.float32)
    path = saved(chain(weight), tmp_path / "m.onnx", apart=apart)
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    session = portable_session(path)
    assert session.ran_on == f"onnxruntime {ort.__version__} CPUExecutionProvider, bfloat16 emulated in float32"
    got = session.run({"x": x})
    z = short(short(short(x) * short(np.float32(2.1))) + short(x))
    np.testing.assert_array_equal(got["z"], z)
    assert (got["z"] != x * np.float32(2.1) + x).any()
    # Sums of products may be added in another order, which moves a rounding now and then.
    np.testing.assert_allclose(got["y"], short(z @ short(weight)), rtol=2.0**-7)
    np.testing.assert_array_equal(got["y"], short(got["y"]))


def test_bfloat16_inputs_and_outputs_keep_their_type(tmp_path: Path) -> None:
    text = """<ir_version: 11, opset_import: ["": 23]>
    g (bfloat16[2] x) => (bfloat16[2] y) { y = Add (x, x) }"""
    model = onnx.parser.parse_model(text)
    onnx.save(model, tmp_path / "m.onnx")
    session = ort.InferenceSession(emulated(tmp_path / "m.onnx", frozenset({int(SHORT)})))
    kinds = [value.type for value in (*session.get_inputs(), *session.get_outputs())]
    assert kinds == ["tensor(bfloat16)", "tensor(bfloat16)"]


def float4_weight(codes: NDArray[np.uint8]) -> ir.Model:
    """x · w, w of float4 [K, 2] behind scales of float8 [K / 16, 2] behind one of float32."""
    text = """<ir_version: 11, opset_import: ["": 23]>
    g (float[B, K] x, float4e2m1[K, 2] w, float8e4m3fn[J, 2] s, float g) => (float[B, 2] y) {
      blocks = DequantizeLinear (s, g)
      weight = DequantizeLinear <axis = 0, block_size = 16> (w, blocks)
      y = MatMul (x, weight)
    }"""
    model = ir.from_onnx_text(text)
    flat = codes.reshape(-1)
    packed = (flat[0::2] | flat[1::2] << 4).astype(np.uint8)
    held = {
        "w": ir.PackedTensor(packed, FOUR, shape=ir.Shape(codes.shape), name="w"),
        "s": ir.tensor(np.array([[1.5, 2], [0.25, 448]], ml_dtypes.float8_e4m3fn), name="s"),
        "g": ir.tensor(np.float32(0.5), name="g"),
    }
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.const_value = held[str(value.name)]
        value.shape = ir.Shape(value.const_value.shape)
        model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("apart", [False, True], ids=["inside", "beside"])
def test_every_float4_code_of_a_weight_is_decoded(apart: bool, tmp_path: Path) -> None:
    codes = RNG.permuted(np.arange(64) % 16).astype(np.uint8).reshape(32, 2)
    path = saved(float4_weight(codes), tmp_path / "m.onnx", apart=apart)
    session = portable_session(path)
    assert session.ran_on.endswith(", float4e2m1 emulated in float32")
    got = session.run({"x": np.eye(32, dtype=np.float32)})["y"]
    scale = np.float32([[1.5, 2], [0.25, 448]]).repeat(16, axis=0) * np.float32(0.5)
    np.testing.assert_array_equal(got, codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale)


@pytest.fixture(scope="module")
def rounding(tmp_path_factory: pytest.TempPathFactory) -> object:
    """x [R, 32] to float4 in blocks of 16 and back, the scales [R, 2] given."""
    text = """<ir_version: 11, opset_import: ["": 23]>
    g (float[R, 32] x, float[R, 2] scale) => (float[R, 32] y) {
      q = QuantizeLinear <axis = 1, block_size = 16, output_dtype = 23> (x, scale)
      y = DequantizeLinear <axis = 1, block_size = 16> (q, scale)
    }"""
    path = tmp_path_factory.mktemp("float4") / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return portable_session(path)


@given(arrays(np.float32, (2, 32), elements=st.floats(-40, 40, width=32)), st.sampled_from([0.25, 1.0, 3.0]))
@settings(max_examples=60)
def test_rounding_to_float4_is_that_of_ml_dtypes(rounding, x: NDArray[np.float32], scale: float) -> None:
    scales = np.float32([[scale, 1], [2, scale]])
    got = rounding.run({"x": x, "scale": scales})["y"]
    wide = scales.repeat(16, axis=1)
    steps = np.clip(x / wide, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(np.abs(got), np.abs(steps * wide))
    assert (got * x >= 0).all()


def test_ties_of_float4_go_to_the_even_number(rounding) -> None:
    middles = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, -7]
    even = [0, 1, 1, 2, 2, 4, 4, 6, 0, -1, -1, -2, -2, -4, -4, -6]
    x = np.float32([middles * 2])
    np.testing.assert_array_equal(rounding.run({"x": x, "scale": np.ones((1, 2), np.float32)})["y"], [even * 2])


def test_what_cannot_be_emulated_is_an_error(tmp_path: Path) -> None:
    text = """<ir_version: 11, opset_import: ["": 23]>
    g (float[16, 4] x, float[1, 4] scale) => (float[16, 4] y) {
      q = QuantizeLinear <axis = 0, block_size = 16, output_dtype = 23> (x, scale)
      y = DequantizeLinear <axis = 0, block_size = 16> (q, scale)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(StageError, match="last axis"):
        portable_session(tmp_path / "m.onnx")


def test_other_graphs_are_opened_from_their_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """<ir_version: 11, opset_import: ["": 23]>
    g (float16[2] x) => (float16[2] y) { y = Add (x, x) }"""
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    assert what_is_emulated(contents(path).dtypes) == ""
    opened = []
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda source, *rest, **more: opened.append(source) or real(source, *rest, **more)
    )
    assert portable_session(path).ran_on == f"onnxruntime {ort.__version__} CPUExecutionProvider"
    assert opened == [str(path)]
