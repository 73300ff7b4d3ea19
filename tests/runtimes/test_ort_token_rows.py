"""Tokens as rows: the same numbers, one Gemm a Linear, and no SkipLayerNormalization made while loading."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from ort_graphs import decoder_spec, written

from runtimes import portable_session
from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.lowering import lower_graph
from runtimes._onnxruntime.rules.own_float_linear import use_float_linear
from runtimes._onnxruntime.rules.token_rows import use_token_rows
from runtimes.ort_cpu.rules import rules_for

WIDTH, INNER = 16, 24
FEED_FORWARD = """
    placed = Add(x, places)
    normed = LayerNormalization<axis={axis}>(placed, gain, shift)
    up = MatMul(normed, wide)
    wider = Add({up})
    active = Gelu(wider)
    down = MatMul(active, narrow)
    projected = Add(down, narrow_bias)
    summed = Add(projected, normed)
    y = LayerNormalization(summed, gain, shift)
"""


def constants(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {
        "places": (1, 5, WIDTH), "gain": (WIDTH,), "shift": (WIDTH,), "wide": (WIDTH, INNER), "wide_bias": (INNER,),
        "narrow": (INNER, WIDTH), "narrow_bias": (WIDTH,),
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def model_of(body: str, x: str, outputs: str, values: dict[str, np.ndarray]) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ntiny ({x} x) => ({outputs})\n{{\n{body}\n}}'
    proto = onnx.parser.parse_model(text)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in values.items() if name in used
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def feed_forward(sizes: str = "batch, 5", axis: int = -1, up: str = "up, wide_bias", more: str = "") -> ir.Model:
    body = FEED_FORWARD.format(axis=axis, up=up)
    x = f"float[{sizes}, {WIDTH}]"
    return model_of(body, x, f"{x} y{more}", constants(np.random.default_rng(0)))


def lowered_and_compared(model: ir.Model, folder, rows: int = 3, scheme: str = "fp32"):
    source = written(model, folder, scheme)
    x = np.random.default_rng(1).standard_normal((rows, 5, WIDTH)).astype(np.float32)
    reference = ReferenceEvaluator(str(source.path))
    # Our own Linears, which come last, would take in the nodes that are counted here.
    rules = [rule for rule in rules_for(source.spec) if rule is not use_float_linear]
    lowered = lower_graph(source, folder / "lowered", "ort-cpu", rules)
    actual = portable_session(lowered.path).run({"x": x})
    assert list(actual) == reference.output_names
    for name, want in zip(reference.output_names, reference.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(actual[name], want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    return lowered


def counts(path) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(path).graph)


def loaded(path, folder) -> Counter[str]:
    """What ONNX Runtime makes of the graph while it loads it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return counts(folder / "loaded.onnx")


@pytest.mark.parametrize("axis", [-1, 2])
def test_every_linear_is_one_gemm_and_no_norm_is_joined_with_its_sum(axis, tmp_path):
    model = feed_forward(axis=axis)
    plain, source = tmp_path / "plain", written(model, tmp_path / "source")
    plain.mkdir()
    assert loaded(source.path, plain)["SkipLayerNormalization"] == 1
    lowered = lowered_and_compared(model, tmp_path)
    kinds = counts(lowered.path)
    assert kinds == {"Add": 2, "Concat": 1, "Gelu": 1, "Gemm": 2, "LayerNormalization": 2, "Reshape": 2, "Shape": 1}
    assert loaded(lowered.path, tmp_path)["SkipLayerNormalization"] == 0
    logged = {step.what: step.count for step in lowered.steps}
    assert logged == {"nodes on [B*S, H] instead of [B, S, H]": 6, "product and bias -> Gemm": 2}


def test_values_that_are_read_on_three_axes_are_still_there(tmp_path):
    lowered = lowered_and_compared(feed_forward(more=f", float[batch, 5, {INNER}] active"), tmp_path)
    (inner,) = [value for value in ir.load(lowered.path).graph.outputs if value.name == "active"]
    assert [str(size) for size in inner.shape] == ["batch", "5", str(INNER)]


def test_numbers_of_rows_have_names_that_only_equal_ones_share():
    leading = [("a", "b*c"), ("a*b", "c"), ("a", "b"), (2, "b"), (2, 3), (3, 2)]
    names = []
    for sizes in leading:
        model = feed_forward("batch, 5")
        for value in [*model.graph.inputs, *(node.outputs[0] for node in model.graph)]:
            value.shape = ir.Shape([*sizes, value.shape[2]])
        use_token_rows(model, Emitter(model))
        (norm,) = [node for node in model.graph if node.op_type == "Gemm"][:1]
        names.append(str(norm.outputs[0].shape[0]))
    assert names == ["(a)*(b*c)", "(a*b)*(c)", "(a)*(b)", "(2)*(b)", "6", "6"]


def test_a_bias_on_the_left_and_a_fixed_batch(tmp_path):
    lowered = lowered_and_compared(feed_forward("2, 5", up="wide_bias, up"), tmp_path, rows=2)
    assert counts(lowered.path)["Gemm"] == 2


def test_a_product_that_others_read_keeps_its_bias_apart(tmp_path):
    lowered = lowered_and_compared(feed_forward(more=f", float[batch, 5, {INNER}] up"), tmp_path)
    kinds = counts(lowered.path)
    assert (kinds["MatMul"], kinds["Gemm"]) == (1, 1)


def test_what_mixes_tokens_stays_on_three_axes(tmp_path):
    body = """
        scaled = Mul(x, column)
        most = Softmax<axis=1>(scaled)
        up = MatMul(most, wide)
        wider = Add(up, wide_bias)
        other = Add(wider, inner_places)
        y = LayerNormalization<axis=1>(other, table)
    """
    rng = np.random.default_rng(2)
    more = {"column": (5, 1), "inner_places": (5, INNER), "table": (5, INNER)}
    values = constants(rng) | {name: rng.standard_normal(shape).astype(np.float32) for name, shape in more.items()}
    model = model_of(body, f"float[batch, 5, {WIDTH}]", f"float[batch, 5, {INNER}] y", values)
    kinds = counts(lowered_and_compared(model, tmp_path).path)
    assert kinds["Gemm"] == 1
    assert kinds["Reshape"] == 2


def test_sizes_without_a_name_change_nothing(tmp_path):
    model = feed_forward("batch, 5")
    for node in model.graph:
        node.outputs[0].shape = ir.Shape([None, None, node.outputs[0].shape[2]])
    model.graph.outputs[0].shape = ir.Shape(["batch", 5, WIDTH])
    lowered = lowered_and_compared(model, tmp_path)
    assert not lowered.steps
    assert counts(lowered.path)["MatMul"] == 2


def test_integer_products_before_a_norm(tmp_path):
    body = """
        quantized = QuantizeLinear(x, step, zero)
        restored = DequantizeLinear(quantized, step, zero)
        matrix = DequantizeLinear<axis=1>(integers, steps)
        product = MatMul(restored, matrix)
        biased = Add(product, narrow_bias)
        summed = Add(biased, x)
        y = LayerNormalization(summed, gain, shift)
    """
    rng = np.random.default_rng(3)
    values = constants(rng) | {
        "step": np.float32(0.05), "zero": np.int8(0), "steps": rng.uniform(0.001, 0.02, WIDTH).astype(np.float32),
        "integers": rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8),
    }  # fmt: skip
    x = f"float[batch, 5, {WIDTH}]"
    lowered = lowered_and_compared(model_of(body, x, f"{x} y", values), tmp_path, scheme="int8")
    kinds = loaded(lowered.path, tmp_path)
    assert (kinds["MatMulIntegerToFloat"], kinds["LayerNormalization"], kinds["SkipLayerNormalization"]) == (1, 1, 0)


def test_language_models_keep_their_three_axes(tmp_path):
    spec = written(feed_forward(), tmp_path).spec
    assert use_token_rows in rules_for(spec)
    assert use_token_rows not in rules_for(decoder_spec(spec, 1, 8))
