"""LayerScale inside the Linear before it: the same numbers, one node less, integers as they were."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from ort_graphs import written

from runtimes import portable_session
from runtimes.ort_cpu import RUNTIME

DEPTH, WIDTH = 12, 8
INT8 = """
    quantized = QuantizeLinear(x, step, zero)
    restored = DequantizeLinear(quantized, step, zero)
    matrix = DequantizeLinear<axis=1>(integers, {steps})
    product = MatMul(restored, matrix)
"""


def compared(body: str, folder, outputs: str = "y", scheme: str = "fp32"):
    rng = np.random.default_rng(0)
    values = {
        "weight": rng.standard_normal((DEPTH, WIDTH)), "bias": rng.standard_normal(WIDTH),
        "factors": rng.standard_normal(WIDTH), "column": rng.standard_normal((5, 1)), "half": np.asarray(0.5),
        "step": np.asarray(0.05), "steps": rng.uniform(0.001, 0.02, WIDTH), "one_step": np.asarray(0.01),
    }  # fmt: skip
    arrays = {name: value.astype(np.float32) for name, value in values.items()}
    arrays |= {"zero": np.int8(0), "integers": rng.integers(-127, 128, (DEPTH, WIDTH)).astype(np.int8)}
    results = ", ".join(f"float[batch, 5, {WIDTH}] {name}" for name in outputs.split())
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ntiny (float[batch, 5, {DEPTH}] x) => ({results})\n{{{body}}}'
    proto = onnx.parser.parse_model(text)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in used)
    source = written(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), folder, scheme)
    x = rng.standard_normal((2, 5, DEPTH)).astype(np.float32)
    reference = ReferenceEvaluator(str(source.path))
    lowered = RUNTIME.lower(source, folder / "lowered")
    actual = portable_session(lowered.path).run({"x": x})
    for name, want in zip(reference.output_names, reference.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(actual[name], want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    return lowered


def kinds(lowered) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(lowered.path).graph)


@pytest.mark.parametrize("scale", ["Mul(biased, factors)", "Mul(factors, biased)"])
@pytest.mark.parametrize("add", ["Add(product, bias)", "Add(bias, product)"])
def test_an_fp32_linear_takes_the_factors(scale, add, tmp_path):
    lowered = compared(f"product = MatMul(x, weight)\nbiased = {add}\ny = {scale}", tmp_path)
    assert kinds(lowered)["Mul"] == 0
    assert {step.what: step.count for step in lowered.steps}["column factors folded into their Linear"] == 1


def test_an_fp32_product_without_bias(tmp_path):
    assert kinds(compared("product = MatMul(x, weight)\ny = Mul(product, factors)", tmp_path))["Mul"] == 0


@pytest.mark.parametrize("steps", ["steps", "one_step"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_an_int8_linear_keeps_its_integers(steps, with_bias, tmp_path):
    biased = "biased = Add(product, bias)\ny = Mul(biased, factors)" if with_bias else "y = Mul(product, factors)"
    lowered = compared(INT8.format(steps=steps) + biased, tmp_path, scheme="int8")
    assert kinds(lowered) == {"Int8Linear": 1}
    assert ir.load(lowered.path).graph.initializers["integers"].dtype == ir.DataType.INT8


def test_two_linears_may_share_bias_and_factors(tmp_path):
    one = INT8.format(steps="steps") + "biased = Add(product, bias)\ny = Mul(biased, factors)"
    other = "p = MatMul(x, weight)\nb = Add(p, bias)\nz = Mul(b, factors)"
    assert kinds(compared(f"{one}\n{other}", tmp_path, "y z", "int8"))["Mul"] == 0


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("product = MatMul(x, weight)\nbiased = Add(product, bias)\ny = Mul(biased, factors)", "y biased"),
        ("product = MatMul(x, weight)\nbiased = Add(product, bias)\ny = Mul(biased, column)", "y"),
        ("product = MatMul(x, weight)\nbiased = Add(product, bias)\ny = Mul(biased, biased)", "y"),
        ("a = MatMul(x, weight)\ny = Mul(a, factors)\nz = MatMul(x, weight)", "y z"),
        ("product = MatMul(x, weight)\nactive = Relu(product)\ny = Mul(active, factors)", "y"),
    ],
    ids=["result read twice", "a factor a token", "no constant", "a tied matrix", "behind an activation"],
)
def test_what_does_not_fit_stays(body, outputs, tmp_path):
    assert kinds(compared(body, tmp_path, outputs))["Mul"] == 1
