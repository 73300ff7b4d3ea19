"""The toolkit's int8 Linear against integers in numpy, against float64, and against its function in ONNX Runtime."""

import dataclasses
import itertools
from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from ort_graphs import activated

from quantize.arithmetic import affine_scale
from runtimes._onnxruntime.kernels import DOMAIN, build
from runtimes._onnxruntime.kernels.function import ACTIVATIONS
from runtimes._onnxruntime.kernels.int8_function import Int8Variant, int8_function

PLAIN, CODES = Int8Variant(), Int8Variant(to_codes=True)
SHAPES = [(1, 1, 1), (2, 3, 15), (5, 50, 17), (6, 64, 64), (13, 66, 65), (31, 130, 48), (32, 67, 200), (300, 40, 33)]


def constants_of(variant, k, n, *, zero_point=128, seed=0):
    rng = np.random.default_rng(seed)
    made = {"x_scale": np.float32(0.021), "x_zero_point": np.uint8(zero_point)}
    if variant.smoothed:
        made["x_multiplier"] = (rng.random(k) + 0.5).astype(np.float32)
    for i in range(3 if variant.qkv else 1):
        made[f"W{i}"] = rng.integers(-128, 128, (k, n)).astype(np.int8)
        made[f"W_scale{i}"] = ((rng.random(n) + 0.1) * 0.02 / np.sqrt(k)).astype(np.float32)
        made[f"bias{i}"] = rng.standard_normal(n).astype(np.float32)
    if variant.smoothed_codes:
        made["y_multiplier"] = (rng.random(n) + 0.5).astype(np.float32)
    if variant.to_codes:
        made |= {"y_scale": np.float32(0.017), "y_zero_point": np.uint8(11)}
    return {name: np.asarray(made[name]) for name in variant.inputs if name in made}


def model_of(variant, constants, lead=("rows",)):
    """One operator, with its function; what no constant is given for becomes an input of the graph."""
    (k, n) = constants["W0"].shape if constants["W0"].ndim == 2 else (4, 4)
    values = {}
    for name, array in constants.items():
        tensor = ir.tensor(array)
        values[name] = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
    inputs = []
    for name in variant.inputs:
        if name not in values:
            width = n if name == "residual" else k
            dtype = ir.DataType.UINT8 if name == "x" and variant.of_codes else ir.DataType.FLOAT
            values[name] = ir.Value(name=name, shape=ir.Shape([*lead, width]), type=ir.TensorType(dtype))
            inputs.append(values[name])
    node = ir.node(
        variant.name, [values[name] for name in variant.inputs], domain=DOMAIN, num_outputs=3 if variant.qkv else 1
    )
    for i, output in enumerate(node.outputs):
        output.name, output.shape = f"y{i}", ir.Shape([*lead, n])
        output.type = ir.TensorType(ir.DataType.UINT8 if variant.to_codes else ir.DataType.FLOAT)
    opsets = {"": 23, "com.microsoft": 1, DOMAIN: 1}
    weights = [values[name] for name in constants]
    graph = ir.Graph(inputs, node.outputs, nodes=[node], initializers=weights, opset_imports=opsets, name="tiny")
    return ir.Model(graph, ir_version=10, functions=[int8_function(variant, 23)])


def opened(model, library=None, threads=1):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds_of(variant, m, k, n, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (m, k)).astype(np.uint8) if variant.of_codes else rng.standard_normal((m, k)) * 2
    feeds = {"x": x if variant.of_codes else x.astype(np.float32)}
    return feeds | ({"residual": rng.standard_normal((m, n)).astype(np.float32)} if variant.residual else {})


def rounded(x, scale, zero_point):
    return np.clip(np.rint(x / scale) + np.float32(zero_point), 0, 255).astype(np.uint8)


def ranges(x):
    """float32 scale and zero point [M, 1] of each row."""
    scale, zero = affine_scale(x.min(-1, keepdims=True), x.max(-1, keepdims=True))
    return scale, zero.astype(np.float32)


def expected(variant, constants, feeds, index=0):
    """[M, N] float64 before it is rounded, with the activation in float64."""
    x = feeds["x"]
    x_scale, x_zero = (constants.get(f"x_{part}") for part in ("scale", "zero_point"))
    if not variant.of_codes:
        smoothed = x * constants["x_multiplier"] if variant.smoothed else x
        if variant.tokens:
            x_scale, x_zero = ranges(smoothed)
        x = rounded(smoothed, x_scale, x_zero)
    sums = (x.astype(np.int64) - np.asarray(x_zero, np.int64)) @ constants[f"W{index}"].astype(np.int64)
    scale = x_scale.astype(np.float64) * constants[f"W_scale{index}"]
    y = activated(sums * scale + constants[f"bias{index}"], variant.activation)
    return y + feeds.get("residual", 0)


def exact(constants):
    """Unit scales and no bias, so that y is the integers themselves; x must be whole numbers then."""
    n = constants["W0"].shape[1]
    unit = {"x_scale": np.float32(1), "W_scale0": np.ones(n, np.float32), "bias0": np.zeros(n, np.float32)}
    return constants | {name: np.asarray(array) for name, array in unit.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
@pytest.mark.usefixtures("linear_form")
def test_sums_are_exact_integers(shape, zero_point, kernels):
    m, k, n = shape
    constants = exact(constants_of(PLAIN, k, n, zero_point=zero_point))
    x = np.random.default_rng(2).integers(-300, 300, (m, k)).astype(np.float32)
    codes = np.clip(x.astype(np.int64) + zero_point, 0, 255) - zero_point
    session = opened(model_of(PLAIN, constants), kernels, threads=2)
    (found,) = session.run(None, {"x": x})
    assert np.array_equal(found, codes @ constants["W0"].astype(np.int64))


@pytest.mark.parametrize("rows", [*range(1, 14), 47, 64, 65, 100])
@pytest.mark.usefixtures("linear_form")
def test_any_number_of_rows_and_threads(rows, kernels):
    constants = exact(constants_of(PLAIN, 20, 70))
    model = model_of(PLAIN, constants)
    x = np.random.default_rng(rows).integers(-90, 90, (rows, 20)).astype(np.float32)
    want = x.astype(np.int64) @ constants["W0"].astype(np.int64)
    for threads in (1, 2):
        (found,) = opened(model, kernels, threads).run(None, {"x": x})
        assert np.array_equal(found, want)


@pytest.mark.parametrize("code", [0, 255])
@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.usefixtures("linear_form")
def test_the_largest_sums_do_not_saturate(code, weight, kernels):
    variant = Int8Variant(of_codes=True)
    constants = exact(constants_of(variant, 32768, 3, zero_point=255 - code))
    constants["W0"] = np.full((32768, 3), weight, np.int8)
    (found,) = opened(model_of(variant, constants), kernels).run(None, {"x": np.full((2, 32768), code, np.uint8)})
    assert np.array_equal(found, np.full((2, 3), np.float32((2 * code - 255) * weight * 32768)))


def all_variants():
    singles = [
        Int8Variant(activation=activation, to_codes=codes, smoothed_codes=smoothed)
        for activation, (codes, smoothed) in itertools.product(
            ("", *ACTIVATIONS), ((False, False), (True, False), (True, True))
        )
    ]
    for shape in (*singles, Int8Variant(residual=True), Int8Variant(qkv=True)):
        yield shape
        yield dataclasses.replace(shape, smoothed=True)
        yield dataclasses.replace(shape, of_codes=True)
        if not shape.to_codes:
            yield dataclasses.replace(shape, tokens=True)
            yield dataclasses.replace(shape, tokens=True, smoothed=True)


@pytest.mark.parametrize("variant", list(all_variants()), ids=lambda variant: variant.name)
@pytest.mark.usefixtures("linear_form")
def test_every_variant_is_what_it_says_and_what_its_function_says(variant, kernels):
    m, k, n = 37, 50, 83
    constants, feeds = constants_of(variant, k, n, zero_point=97), feeds_of(variant, m, k, n)
    model = model_of(variant, constants)
    found, body = (opened(model, library).run(None, feeds) for library in (kernels, None))
    assert len(found) == (3 if variant.qkv else 1)
    # By tokens the zero point is taken off behind the product, in float32, where two large numbers nearly cancel.
    near = partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-5 if variant.tokens else 2e-6)
    for i, (own, stock) in enumerate(zip(found, body, strict=True)):
        want = expected(variant, constants, feeds, i)
        if not variant.to_codes:
            near(own, want)
            near(own, stock)
            continue
        real = want * constants.get("y_multiplier", 1) / constants["y_scale"] + int(constants["y_zero_point"])
        assert np.abs(own - np.clip(real, 0, 255)).max() <= 0.5 + 1e-3
        assert (own != stock).mean() < 1e-3
        assert len(np.unique(own)) > 20


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "Relu"])
@pytest.mark.usefixtures("linear_form")
def test_activations_over_their_whole_range(activation, kernels):
    variant = Int8Variant(activation=activation, of_codes=True)
    constants = exact(constants_of(variant, 1, 4096, zero_point=0))
    constants["W0"] = np.ones((1, 4096), np.int8)
    constants["bias0"] = np.concatenate([np.linspace(-13, 13, 4090), [-1e30, 1e30, 100, -100, 0, -0.0]], dtype="f4")
    (found,) = opened(model_of(variant, constants), kernels).run(None, {"x": np.zeros((1, 1), np.uint8)})
    want = activated(constants["bias0"].astype(np.float64).clip(-200, None), activation)
    np.testing.assert_allclose(found[0], want, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("linear_form")
def test_numbers_that_are_none_and_infinities_round_as_in_onnxruntime(kernels):
    constants = exact(constants_of(PLAIN, 16, 16, zero_point=100))
    constants["W0"] = np.eye(16, dtype=np.int8)
    x = np.zeros((3, 16), np.float32)
    x[0, :6] = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45]
    x[1, :6] = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    model = model_of(PLAIN, constants)
    found, stock = (opened(model, library).run(None, {"x": x})[0] for library in (kernels, None))
    assert np.array_equal(found, stock)
    assert found[0, :6].tolist() == [-100, 155, -100, 155, -100, 0]


@pytest.mark.usefixtures("linear_form")
def test_a_token_that_holds_no_number_or_an_infinity_answers_none_and_the_others_do(kernels):
    """ONNX Runtime's own minimum, in the function, may pass NaN over."""
    variant = Int8Variant(tokens=True)
    model = model_of(variant, constants_of(variant, 40, 20))
    x = np.random.default_rng(4).standard_normal((4, 40)).astype(np.float32)
    x[0, 39], x[1, 2], x[2, 5] = np.nan, np.inf, -np.inf
    own, stock = (opened(model, library).run(None, {"x": x})[0] for library in (kernels, None))
    assert np.isnan(own[0]).all()
    for found in (own, stock):
        assert np.isfinite(found[1:]).any(axis=1).tolist() == [False, False, True]


@pytest.mark.parametrize("lead", [(2, 3, 5), (4,), (1, 1), (0, 7), ()])
@pytest.mark.usefixtures("linear_form")
def test_whatever_stands_before_the_last_axis(lead, kernels):
    variant = Int8Variant(residual=True)
    constants = constants_of(variant, 12, 20)
    rng = np.random.default_rng(3)
    feeds = {
        name: rng.standard_normal((*lead, width)).astype(np.float32) for name, width in (("x", 12), ("residual", 20))
    }
    names = [f"d{i}" for i in range(len(lead))]
    (found,) = opened(model_of(variant, constants, names), kernels).run(None, feeds)
    assert found.shape == (*lead, 20)
    np.testing.assert_allclose(found, expected(variant, constants, feeds), rtol=2e-6, atol=2e-6)


def without(constants, *names):
    return {name: array for name, array in constants.items() if name not in names}


REFUSED = {
    "a weight that is no constant": lambda c: without(c, "bias0"),
    "a scale of another length": lambda c: c | {"W_scale0": np.ones(3, np.float32)},
    "a weight of three axes": lambda c: c | {"W0": np.ones((2, 2, 4), np.int8)},
    "a weight of no rows": lambda c: c | {"W0": np.ones((0, 4), np.int8)},
    "more inputs than 32 bits sum": lambda c: c | {"W0": np.ones((32769, 4), np.int8)},
    "a scale of zero": lambda c: c | {"x_scale": np.asarray(0, np.float32)},
    "a scale that is no number": lambda c: c | {"x_scale": np.asarray(np.nan, np.float32)},
    "a negative scale of y": lambda c: c | {"y_scale": np.asarray(-1, np.float32)},
    "several zero points": lambda c: c | {"x_zero_point": np.zeros(4, np.uint8)},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_malformed_operators_are_refused(change, kernels, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "portable")
    with pytest.raises(Exception, match="must"):
        opened(model_of(CODES, change(constants_of(CODES, 4, 4))), kernels)


def test_malformed_inputs_are_refused(kernels, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "portable")
    variant = Int8Variant(residual=True)
    session = opened(model_of(variant, constants_of(variant, 4, 6), ("rows",)), kernels)
    good = {"x": np.ones((2, 4), np.float32), "residual": np.ones((2, 6), np.float32)}
    assert session.run(None, good)[0].shape == (2, 6)
    with pytest.raises(Exception, match="residual must have the shape"):
        session.run(None, good | {"residual": np.ones((1, 6), np.float32)})


def test_with_avx2_alone_the_function_runs(kernels, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "avx2")
    constants, feeds = constants_of(PLAIN, 30, 40), feeds_of(PLAIN, 5, 30, 40)
    model = model_of(PLAIN, constants)
    session = opened(model, kernels)
    assert np.array_equal(session.run(None, feeds)[0], opened(model).run(None, feeds)[0])
