"""Number types that ONNX Runtime's CPU lacks: the emulated graph against arithmetic by NumPy, and its honesty."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

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

from exporters.fused_attention.function import attach_function
from runtimes import portable_session
from runtimes._onnxruntime.session import OrtSession
from toolkit.errors import StageError

FOUR = ir.DataType.FLOAT4E2M1
RNG = np.random.default_rng(0)
SHORT: dict[str, tuple[ir.DataType, Any]] = {
    "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
    "float16": (ir.DataType.FLOAT16, np.float16),
}
both = pytest.mark.parametrize("name", SHORT)

CHAIN = """
<ir_version: 11, opset_import: ["": 23, "local": 1]>
chain (float[B, 8] x, SHORT[8, 4] w) => (float[B, 4] y, float[B, 8] z)
{
  h = Cast <to = CODE> (x)
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


def as_short(name: str, array: Any) -> NDArray[np.float32]:
    """Rounded to the type and wide again; what passes its range is infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32).astype(SHORT[name][1]).astype(np.float32)


def text_of(name: str, text: str) -> str:
    return text.replace("SHORT", name).replace("CODE", str(int(SHORT[name][0])))


def chain(name: str, weight: NDArray[np.float32]) -> ir.Model:
    """x · 2.1 + x, then a product, all in 16 bits; a function of its own does the first part."""
    dtype, form = SHORT[name]
    model = ir.from_onnx_text(text_of(name, CHAIN))
    value = model.graph.inputs.pop(1)
    value.const_value = ir.tensor(weight.astype(form), dtype=dtype, name="w")
    model.graph.register_initializer(value)
    return model


@both
@pytest.mark.parametrize("apart", [False, True], ids=["inside", "beside"])
def test_every_operator_is_rounded(name: str, apart: bool, tmp_path: Path) -> None:
    weight = RNG.standard_normal((8, 4)).astype(np.float32)
    path = saved(chain(name, weight), tmp_path / "m.onnx", apart=apart)
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    session = portable_session(path)
    assert session.ran_on == f"onnxruntime {ort.__version__} CPUExecutionProvider, {name} emulated in float32"
    got, narrow = session.run({"x": x}), partial(as_short, name)
    z = narrow(narrow(narrow(x) * narrow(2.1)) + narrow(x))
    np.testing.assert_array_equal(got["z"], z)
    assert (got["z"] != x * np.float32(2.1) + x).any()
    # Sums of products may be added in another order, which moves a rounding now and then.
    step = 2.0**-7 if name == "bfloat16" else 2.0**-10
    np.testing.assert_allclose(got["y"], narrow(z @ narrow(weight)), rtol=step, atol=step / 100)
    np.testing.assert_array_equal(got["y"], narrow(got["y"]))


@both
def test_inputs_and_outputs_keep_their_type_where_there_are_arrays_of_it(name: str, tmp_path: Path) -> None:
    """Of bfloat16 there are none in Python: it is float32 then, rounded before it is computed with, and after."""
    text = """<ir_version: 11, opset_import: ["": 23]>
    g (SHORT[2] x) => (SHORT[2] y, SHORT[2] z) { y = Mul (x, x) z = Identity (x) }"""
    onnx.save(onnx.parser.parse_model(text_of(name, text)), tmp_path / "m.onnx")
    session = OrtSession(tmp_path / "m.onnx", rounded=True)
    kind = "float16" if name == "float16" else "float32"
    assert [(spec.name, spec.dtype) for spec in (*session.inputs, *session.outputs)] == [
        ("x", kind), ("y", kind), ("z", kind)
    ]  # fmt: skip
    x = np.array([1.2345678, -77.7], kind)
    got = session.run({"x": x})
    np.testing.assert_array_equal(got["z"], as_short(name, x))
    np.testing.assert_array_equal(got["y"], as_short(name, as_short(name, x) ** 2))


def opened(folder: Path, body: str, *, shape: str = "N, K", more: str = "", rounded: bool = True) -> OrtSession:
    """`body` computes b, of float16, from a, which is x in float16, and from what `more` declares."""
    text = f"""<ir_version: 11, opset_import: ["": 23]>
    g (float[{shape}] x{more}) => (float y) {{ a = Cast <to = 10> (x)
      {body}
      y = Cast <to = 1> (b) }}"""
    model = ir.from_onnx_text(text)
    model.graph.outputs[0].shape = None
    return OrtSession(saved(model, folder / "m.onnx"), rounded=rounded)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> OrtSession:
    """x · x - x, twice rounded."""
    return opened(tmp_path_factory.mktemp("sums"), "s = Mul (a, a)\n b = Sub (s, a)")


@given(arrays(np.float32, (2, 16), elements=st.floats(width=32)))
@settings(max_examples=60)
def test_float16_is_that_of_numpy_for_any_number(sums: OrtSession, x: NDArray[np.float32]) -> None:
    """Products and sums of two float16 are rounded twice without harm: float32 has more than twice the digits."""
    with np.errstate(all="ignore"):
        half = x.astype(np.float16)
        expected = (half * half - half).astype(np.float32)
    np.testing.assert_array_equal(sums.run({"x": x})["y"], expected)


def test_what_passes_65504_is_infinite_and_plain_onnxruntime_hides_it(tmp_path: Path) -> None:
    x = np.float32([[300, 2, 255.75]])
    body = "s = Mul (a, a)\n b = Div (s, a)"
    np.testing.assert_array_equal(opened(tmp_path, body).run({"x": x})["y"], [[np.inf, 2, 255.75]])
    assert opened(tmp_path, body, rounded=False).run({"x": x})["y"][0, 0] == 300


def test_a_softmax_of_forbidden_places_is_that_of_float32_rounded(tmp_path: Path) -> None:
    x = np.float32([[1, -np.inf, 2, -np.inf], [-np.inf, -np.inf, -np.inf, 5], [-32768, 3, -65504, 2.5]])
    got = opened(tmp_path, "b = Softmax <axis = -1> (a)").run({"x": x})["y"]
    powers = np.exp(x - x.max(-1, keepdims=True))
    exact = as_short("float16", powers / powers.sum(-1, keepdims=True))
    np.testing.assert_allclose(got, exact, rtol=2.0**-10)
    assert (got[np.isneginf(x)] == 0).all()


def test_a_normalisation_computes_in_float32_and_rounds_what_it_answers(tmp_path: Path) -> None:
    x = (RNG.standard_normal((4, 64)) * 3000).astype(np.float32)
    body = f"""one = Constant <value_floats = [{", ".join(["1.0"] * 64)}]> ()
      w = Cast <to = 10> (one)
      b = LayerNormalization (a, w)"""
    got = opened(tmp_path, body).run({"x": x})["y"]
    half = as_short("float16", x).astype(np.float64)
    exact = (half - half.mean(-1, keepdims=True)) / np.sqrt(half.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_array_equal(got, as_short("float16", got))
    np.testing.assert_allclose(got, exact, rtol=2.0**-10, atol=1e-6)


ATTENTION = "b = Attention <scale = 1.0> (a, a, a, mask)"


def attention(x: NDArray[np.float32], mask: NDArray[np.float16]) -> NDArray[np.float32]:
    """softmax(x · xᵀ + mask) · x in float64, rounded to float16 at the end."""
    q = as_short("float16", x).astype(np.float64)
    scores = q @ q.swapaxes(-1, -2) + mask
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return as_short("float16", powers / powers.sum(-1, keepdims=True) @ q)


@pytest.mark.parametrize("size", [1, 90], ids=["usual", "scores beyond 65504"])
@pytest.mark.parametrize("floor", [-32752, -65504, -np.inf])
def test_an_attention_node_rounds_its_answer_alone(size: float, floor: float, tmp_path: Path) -> None:
    """A mask of the lowest number beside a negative score is no NaN, as it is none in a fused kernel."""
    x = (RNG.standard_normal((1, 2, 5, 16)) * size).astype(np.float32)
    mask = np.where(np.tril(np.ones((5, 5), bool)), 0, floor).astype(np.float16)
    session = opened(tmp_path, ATTENTION, shape="1, 2, 5, 16", more=", float16[5, 5] mask")
    got = session.run({"x": x, "mask": mask})["y"]
    np.testing.assert_allclose(got, attention(x, mask), rtol=2.0**-9, atol=1e-3)
    np.testing.assert_array_equal(got, as_short("float16", got))


@pytest.mark.parametrize("floor", [-32752, -65504, -np.inf])
def test_a_fused_attention_is_one_operator_too(floor: float, tmp_path: Path) -> None:
    text = """<ir_version: 11, opset_import: ["": 23, "toolkit": 1]>
    g (float[1, 2, 5, 16] x, float16[5, 5] mask) => (float[1, 2, 5, 16] y) {
      a = Cast <to = 10> (x)
      b = toolkit.FusedAttention <scale = 1.0, is_causal = 0, softcap = 0.0, left_window_size = -1,
        right_window_size = -1> (a, a, a, mask)
      y = Cast <to = 1> (b) }"""
    model = ir.from_onnx_text(text)
    for value in (model.graph[0].outputs[0], model.graph[1].outputs[0]):
        value.dtype, value.shape = ir.DataType.FLOAT16, ir.Shape([1, 2, 5, 16])
    attach_function(model)
    x = (RNG.standard_normal((1, 2, 5, 16)) * 90).astype(np.float32)
    mask = np.where(np.tril(np.ones((5, 5), bool)), 0, floor).astype(np.float16)
    session = portable_session(saved(model, tmp_path / "m.onnx"))
    assert session.ran_on.endswith("float16 emulated in float32")
    np.testing.assert_allclose(session.run({"x": x, "mask": mask})["y"], attention(x, mask), rtol=2.0**-9, atol=1e-3)


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


@pytest.mark.parametrize(("dtype", "rounded"), [("float16", False), ("float", True)])
def test_other_graphs_are_opened_from_their_own_file(
    dtype: str, rounded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 is the CPU provider's own business where it is the engine; float32 is nobody's."""
    text = f"""<ir_version: 11, opset_import: ["": 23]>
    g ({dtype}[2] x) => ({dtype}[2] y) {{ y = Add (x, x) }}"""
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    opened = []
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda source, *rest, **more: opened.append(source) or real(source, *rest, **more)
    )
    assert OrtSession(path, rounded=rounded).ran_on == f"onnxruntime {ort.__version__} CPUExecutionProvider"
    assert opened == [str(path)]
