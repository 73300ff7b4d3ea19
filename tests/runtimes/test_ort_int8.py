"""Integer Linears: the same numbers as the Q/DQ graph in ONNX's reference evaluator, and none lost on the way."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from ort_graphs import written

from runtimes import portable_session
from runtimes._onnxruntime.lowering import lower_graph
from runtimes._onnxruntime.rules.int8_conv import fold_int8_conv_weights
from runtimes._onnxruntime.rules.int8_linear import lower_int8_linears, quantized_linears
from runtimes.ort_cpu import RUNTIME
from toolkit.errors import StageError

DEPTH, WIDTH = 64, 48
STATIC = "xq = QuantizeLinear(x, xs, xz)\nxd = DequantizeLinear(xq, xs, xz)"
DYNAMIC = "xq, xs, xz = DynamicQuantizeLinear(x)\nxd = DequantizeLinear(xq, xs, xz)"
WEIGHT = "{0} = DequantizeLinear<axis={1}>({0}q, {0}s, {0}z)"


def graph(
    body: str, outputs: str, constants: dict[str, np.ndarray], x: str = f"float[batch, tokens, {DEPTH}]"
) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ntiny ({x} x) => ({outputs})\n{{\n{body}\n}}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def weight(rng, name: str, shape=(DEPTH, WIDTH), axis: int | None = 1) -> dict[str, np.ndarray]:
    count = () if axis is None else (shape[axis],)
    return {
        f"{name}q": rng.integers(-127, 128, shape).astype(np.int8),
        f"{name}s": rng.uniform(0.001, 0.02, count).astype(np.float32),
        f"{name}z": np.zeros(count, np.int8),
    }


def static(scale: float = 0.03) -> dict[str, np.ndarray]:
    return {"xs": np.float32(scale), "xz": np.int8(0)}


def lowered_and_compared(model: ir.Model, folder, x: np.ndarray):
    source = written(model, folder, "int8")
    reference = ReferenceEvaluator(str(source.path))
    expected = dict(zip(reference.output_names, reference.run(None, {"x": x}), strict=True))
    lowered = lower_graph(source, folder / "lowered", "ort-cpu", (lower_int8_linears, fold_int8_conv_weights))
    actual = portable_session(lowered.path).run({"x": x})
    assert list(actual) == list(expected)
    for name, want in expected.items():
        np.testing.assert_allclose(actual[name], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    return lowered


def counts(lowered) -> dict[str, int]:
    nodes = [node.op_type for node in ir.load(lowered.path).graph]
    return {name: nodes.count(name) for name in sorted(set(nodes))}


def tokens(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape or (2, 5, DEPTH)).astype(np.float32)


@pytest.mark.parametrize(("activation", "quantizer"), [(STATIC, "QuantizeLinear"), (DYNAMIC, "DynamicQuantizeLinear")])
def test_linears_of_one_tensor_share_its_integers_and_take_their_bias(activation, quantizer, tmp_path):
    rng = np.random.default_rng(0)
    body = [activation]
    constants = static() if activation == STATIC else {}
    for name in "abc":
        body += [WEIGHT.format(name, 1), f"{name}m = MatMul(xd, {name})"]
        constants |= weight(rng, name)
    body += ["ya = Add(am, bias)", "yb = Add(bias, bm)", "yc = Identity(cm)"]
    constants["bias"] = rng.standard_normal(WIDTH).astype(np.float32)
    outputs = ", ".join(f"float[batch, tokens, {WIDTH}] y{name}" for name in "abc")
    lowered = lowered_and_compared(graph("\n".join(body), outputs, constants), tmp_path, tokens(rng))
    assert counts(lowered) == {quantizer: 1, "MatMulIntegerToFloat": 3, "Identity": 1}
    logged = {step.what: step.count for step in lowered.steps}
    assert logged["quantized Linear -> MatMulIntegerToFloat"] == 3
    assert logged["biases taken into the product"] == 2


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gemm(turned, with_bias, tmp_path):
    rng = np.random.default_rng(1)
    shape, axis = ((WIDTH, DEPTH), 0) if turned else ((DEPTH, WIDTH), 1)
    constants = static() | weight(rng, "w", shape, axis) | {"bias": rng.standard_normal(WIDTH).astype(np.float32)}
    body = f"{STATIC}\n{WEIGHT.format('w', axis)}\ny = Gemm<transB={turned}>(xd, w{', bias' if with_bias else ''})"
    model = graph(body, f"float[batch, {WIDTH}] y", constants, f"float[batch, {DEPTH}]")
    lowered = lowered_and_compared(model, tmp_path, tokens(rng, 3, DEPTH))
    assert counts(lowered) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}


def test_the_weight_stays_int8_on_disk(tmp_path):
    rng = np.random.default_rng(2)
    body = f"{STATIC}\n{WEIGHT.format('w', 1)}\ny = MatMul(xd, w)"
    lowered = lowered_and_compared(
        graph(body, f"float[batch, tokens, {WIDTH}] y", static() | weight(rng, "w")), tmp_path, tokens(rng)
    )
    tensors = [value.const_value for value in ir.load(lowered.path).graph.initializers.values()]
    assert [tensor.dtype for tensor in tensors if tensor.size == DEPTH * WIDTH] == [ir.DataType.INT8]
    assert [value.name for value in ir.load(lowered.path).graph.outputs] == ["y"]


def test_the_largest_products_do_not_saturate(tmp_path):
    constants = static(1.0) | weight(np.random.default_rng(0), "w")
    constants["wq"] = np.full((DEPTH, WIDTH), 127, np.int8)
    body = f"{STATIC}\n{WEIGHT.format('w', 1)}\ny = MatMul(xd, w)"
    model = graph(body, f"float[batch, tokens, {WIDTH}] y", constants)
    lowered_and_compared(model, tmp_path, np.full((2, 5, DEPTH), 127, np.float32))


def test_a_bias_that_is_not_a_vector_stays_an_addition(tmp_path):
    rng = np.random.default_rng(3)
    body = f"{STATIC}\n{WEIGHT.format('w', 1)}\nm = MatMul(xd, w)\ny = Add(m, more)"
    constants = static() | weight(rng, "w") | {"more": rng.standard_normal((5, WIDTH)).astype(np.float32)}
    lowered = lowered_and_compared(graph(body, f"float[batch, tokens, {WIDTH}] y", constants), tmp_path, tokens(rng))
    assert counts(lowered) == {"Add": 1, "QuantizeLinear": 1, "MatMulIntegerToFloat": 1}


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 7),
    depth=st.integers(1, 80),
    width=st.integers(1, 40),
    per_channel=st.booleans(),
    dynamic=st.booleans(),
    scale=st.sampled_from([1e-3, 0.02, 0.5]),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_scale(tmp_path_factory, *, rows, depth, width, per_channel, dynamic, scale, seed):
    rng = np.random.default_rng(seed)
    axis = 1 if per_channel else None
    constants = weight(rng, "w", (depth, width), axis) | ({} if dynamic else static(scale))
    body = f"{DYNAMIC if dynamic else STATIC}\n{WEIGHT.format('w', 1)}\ny = MatMul(xd, w)"
    model = graph(body, f"float[batch, {width}] y", constants, f"float[batch, {depth}]")
    lowered_and_compared(model, tmp_path_factory.mktemp("case"), tokens(rng, rows, depth))


def test_patch_convolution_gets_its_fp32_weight_back(tmp_path):
    rng = np.random.default_rng(4)
    constants = static() | weight(rng, "w", (8, 3, 2, 2), 0) | {"bias": rng.standard_normal(8).astype(np.float32)}
    body = f"{STATIC}\n{WEIGHT.format('w', 0)}\ny = Conv<strides=[2, 2]>(xd, w, bias)"
    model = graph(body, "float[batch, 8, 4, 4] y", constants, "float[batch, 3, 8, 8]")
    lowered = lowered_and_compared(model, tmp_path, tokens(rng, 2, 3, 8, 8))
    assert counts(lowered) == {"Conv": 1, "QuantizeLinear": 1, "DequantizeLinear": 1}
    assert [(step.what, step.count) for step in lowered.steps] == [("int8 Conv weights folded to fp32", 1)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"wz": np.ones(WIDTH, np.int8)}, "not symmetric"),
        ({"xz": np.int16(0)}, "int16"),
    ],
)
def test_what_has_no_kernel_is_refused_with_the_reason(change, reason, tmp_path):
    constants = static() | weight(np.random.default_rng(0), "w") | change
    body = f"{STATIC}\n{WEIGHT.format('w', 1)}\ny = MatMul(xd, w)"
    source = written(graph(body, f"float[batch, tokens, {WIDTH}] y", constants), tmp_path)
    with pytest.raises(StageError, match=reason) as caught:
        RUNTIME.lower(source, tmp_path / "lowered")
    assert "exclude" in caught.value.hint
    assert not (tmp_path / "lowered" / "model.onnx").exists()


def test_a_weight_without_quantized_activation_is_refused_not_skipped(tmp_path):
    constants = weight(np.random.default_rng(0), "w")
    body = f"{WEIGHT.format('w', 1)}\ny = MatMul(x, w)"
    source = written(graph(body, f"float[batch, tokens, {WIDTH}] y", constants), tmp_path)
    assert len(quantized_linears(ir.load(source.path))) == 1
    with pytest.raises(StageError, match="activation is not quantized"):
        RUNTIME.lower(source, tmp_path / "lowered")
