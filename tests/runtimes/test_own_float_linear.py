"""The toolkit's float32 Linear against float64 and its function; which Linears of a lowered graph become it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ort_graphs import activated, in_every_form, opened, written

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.kernels import DOMAIN, build
from runtimes._onnxruntime.kernels.expanded import SCOPES
from runtimes._onnxruntime.kernels.float_function import FloatVariant, float_function
from runtimes._onnxruntime.kernels.function import ACTIVATIONS
from runtimes._onnxruntime.rules.own_float_linear import use_float_linear
from runtimes._onnxruntime.tapped import TappedGraph
from runtimes.ort_cpu import RUNTIME
from toolkit.compare.modules import Modules
from toolkit.inspection import inspect_graph

VARIANTS = [FloatVariant(), FloatVariant(residual=True), *(FloatVariant(name) for name in ACTIVATIONS)]
SHAPES = [(1, 1, 1), (2, 3, 15), (5, 50, 17), (6, 64, 64), (13, 66, 65), (31, 130, 48), (63, 67, 200), (300, 40, 133)]


def constants_of(k, n):
    rng = np.random.default_rng(k + n)
    weight = rng.standard_normal((k, n)) / np.sqrt(k)
    return {"W": weight.astype(np.float32), "bias": rng.standard_normal(n).astype(np.float32)}


def feeds_of(variant, lead, k, n):
    rng = np.random.default_rng(1)
    widths = {"x": k, **({"residual": n} if variant.residual else {})}
    return {name: rng.standard_normal((*lead, width)).astype(np.float32) for name, width in widths.items()}


def model_of(variant, constants, rank=2):
    """One operator, with its function; what no constant is given for becomes an input of the graph."""
    lead = [f"d{axis}" for axis in range(rank - 1)]
    values = {}
    for name in variant.inputs:
        array = constants.get(name)
        shape = [*lead, None] if array is None else array.shape
        values[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        values[name].const_value = None if array is None else ir.tensor(array)
    node = ir.node(variant.name, list(values.values()), domain=DOMAIN)
    (y,) = node.outputs
    y.name, y.shape, y.type = "y", ir.Shape([*lead, None]), ir.TensorType(ir.DataType.FLOAT)
    inputs = [value for value in values.values() if value.const_value is None]
    weights = [value for value in values.values() if value.const_value is not None]
    graph = ir.Graph(inputs, [y], nodes=[node], initializers=weights, opset_imports={"": 23, DOMAIN: 1}, name="tiny")
    return ir.Model(graph, ir_version=10, functions=[float_function(variant, 23)])


def expected(variant, constants, feeds):
    """float64"""
    y = feeds["x"].astype(np.float64) @ constants["W"].astype(np.float64) + constants["bias"]
    return activated(y, variant.activation) + feeds.get("residual", 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.usefixtures("linear_form")
def test_every_variant_is_what_it_says_and_what_its_function_says(variant, shape, kernels):
    m, k, n = shape
    constants, feeds = constants_of(k, n), feeds_of(variant, (m,), k, n)
    model = model_of(variant, constants)
    (found,), (body,) = (opened(model, library, threads=2).run(None, feeds) for library in (kernels, None))
    np.testing.assert_allclose(found, expected(variant, constants, feeds), rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(found, body, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("rows", [*range(1, 14), 191, 192, 193, 1000])
@pytest.mark.usefixtures("linear_form")
def test_any_number_of_rows_and_threads(rows, kernels):
    """Whole numbers, whose sums are exact in any order."""
    rng = np.random.default_rng(rows)
    constants = {"W": rng.integers(-9, 9, (20, 330)).astype(np.float32), "bias": np.arange(330, dtype=np.float32)}
    x = rng.integers(-90, 90, (rows, 20)).astype(np.float32)
    model = model_of(FloatVariant(), constants)
    for threads in (1, 2):
        (found,) = opened(model, kernels, threads).run(None, {"x": x})
        assert np.array_equal(found, x @ constants["W"] + constants["bias"])


@pytest.mark.parametrize("k", [768, 3072])
@pytest.mark.usefixtures("linear_form")
def test_long_sums_keep_their_bits(k, kernels):
    """As ONNX Runtime's `Gemm` does, 3e-7; one running sum over 3072 would lose 1e-6."""
    constants = constants_of(k, 64) | {"bias": np.zeros(64, np.float32)}
    feeds = feeds_of(FloatVariant(), (16,), k, 64)
    (found,) = opened(model_of(FloatVariant(), constants), kernels).run(None, feeds)
    want = expected(FloatVariant(), constants, feeds)
    assert np.sqrt(np.mean((found - want) ** 2) / np.mean(want**2)) < 4e-7


@pytest.mark.usefixtures("linear_form")
def test_one_session_in_several_threads(kernels):
    variant = FloatVariant(residual=True)
    constants, feeds = constants_of(50, 133), [feeds_of(variant, (rows,), 50, 133) for rows in (1, 37, 200, 64)]
    session = opened(model_of(variant, constants), kernels, threads=2)
    alone = [session.run(None, feed)[0] for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(lambda feed: session.run(None, feed)[0], feeds))
            assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "Relu"])
@pytest.mark.usefixtures("linear_form")
def test_activations_over_their_whole_range(activation, kernels):
    bias = np.concatenate([np.linspace(-13, 13, 4090), [-1e30, 1e30, 100, -100, 0, -0.0]], dtype="f4")
    constants = {"W": np.ones((1, 4096), np.float32), "bias": bias}
    model = model_of(FloatVariant(activation), constants)
    (found,) = opened(model, kernels).run(None, {"x": np.zeros((1, 1), np.float32)})
    want = activated(bias.astype(np.float64).clip(-200, None), activation)
    np.testing.assert_allclose(found[0], want, rtol=3e-7, atol=6e-7)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.usefixtures("linear_form")
def test_what_is_no_number_stays_none_in_its_row(variant, kernels):
    constants, feeds = constants_of(8, 20), feeds_of(variant, (9,), 8, 20)
    feeds["x"][4, 3] = np.nan
    (found,) = opened(model_of(variant, constants), kernels).run(None, feeds)
    assert np.isnan(found).all(axis=1).tolist() == [row == 4 for row in range(9)]
    assert not np.isnan(found[[0, 1, 2, 3, 5, 6, 7, 8]]).any()


@pytest.mark.parametrize("lead", [(2, 3, 5), (4,), (1, 1), (0, 7), ()])
@pytest.mark.usefixtures("linear_form")
def test_whatever_stands_before_the_last_axis(lead, kernels):
    variant = FloatVariant(residual=True)
    constants, feeds = constants_of(12, 20), feeds_of(variant, lead, 12, 20)
    (found,) = opened(model_of(variant, constants, len(lead) + 1), kernels).run(None, feeds)
    assert found.shape == (*lead, 20)
    np.testing.assert_allclose(found, expected(variant, constants, feeds), rtol=3e-6, atol=3e-6)


REFUSED = {
    "a bias that is no constant": {"W": np.ones((4, 6), np.float32)},
    "a bias of another length": {"W": np.ones((4, 6), np.float32), "bias": np.ones(3, np.float32)},
    "a weight of three axes": {"W": np.ones((2, 2, 6), np.float32), "bias": np.ones(6, np.float32)},
    "a weight of no rows": {"W": np.ones((0, 6), np.float32), "bias": np.ones(6, np.float32)},
}


@pytest.mark.parametrize("constants", REFUSED.values(), ids=REFUSED)
def test_malformed_operators_are_refused(constants, kernels, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "portable")
    with pytest.raises(Exception, match="must"):
        opened(model_of(FloatVariant(), constants), kernels)


def test_malformed_inputs_are_refused(kernels, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "portable")
    session = opened(model_of(FloatVariant(residual=True), constants_of(4, 6)), kernels)
    good = {"x": np.ones((2, 4), np.float32), "residual": np.ones((2, 6), np.float32)}
    assert session.run(None, good)[0].shape == (2, 6)
    with pytest.raises(Exception, match="residual must have the shape"):
        session.run(None, good | {"residual": np.ones((1, 6), np.float32)})
    with pytest.raises(Exception, match="last dimension of x must be 4"):
        session.run(None, good | {"x": np.ones((2, 5), np.float32)})


def test_with_avx2_alone_the_function_runs(kernels, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "avx2")
    feeds = feeds_of(FloatVariant(), (50,), 30, 40)
    model = model_of(FloatVariant(), constants_of(30, 40))
    assert np.array_equal(opened(model, kernels).run(None, feeds)[0], opened(model).run(None, feeds)[0])


# ---- the rule ----

H, F = 16, 24
WEIGHTS = {"q": (H, H), "up": (H, F), "down": (F, H), "wide": (2, H, H), "row": (1, H), "none": (H, 0)}


def graph(body, outputs="y", opset=23):
    """A graph of rows x and r [n, 16], weights by name and their biases, each with a b behind the name."""
    text = """<ir_version: 10, opset_import: ["" : {opset}]>
    tiny (float[n, {h}] x, float[n, {h}] r, float[1, {h}] one) => ({outputs}) {{ {body} }}"""
    named = ", ".join(f"float {name}" for name in outputs.split())
    proto = onnx.parser.parse_model(text.format(opset=opset, h=H, outputs=named, body="\n".join(body)))
    rng = np.random.default_rng(0)
    arrays = {"slope": np.float32(1.702), "column": rng.standard_normal(H).astype(np.float32), "flag": np.bool_(True)}
    arrays |= {"cube": np.full((1, 1, 1), 1.702, np.float32), "single": np.ones(1, np.float32)}
    for name, shape in WEIGHTS.items():
        arrays[name] = (rng.standard_normal(shape) / 4).astype(np.float32)
        arrays[f"{name}b"] = rng.standard_normal(shape[-1]).astype(np.float32)
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(a), k) for k, a in arrays.items() if k in read
    )
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def outputs_of(model):
    rng = np.random.default_rng(1)
    session = opened(model)
    rows = {"x": 7, "r": 7, "one": 1}
    feeds = {name: rng.standard_normal((count, H)).astype(np.float32) for name, count in rows.items()}
    return session.run(None, {each.name: feeds[each.name] for each in session.get_inputs()})


def applied(model):
    """The operators left and the counts told; the functions compute what the graph did before."""
    before = outputs_of(model)
    steps = use_float_linear(model, Emitter(model))
    for found, want in zip(outputs_of(model), before, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    return dict(Counter(node.op_type for node in model.graph)), {step.what: step.count for step in steps}


def test_a_feed_forward_block():
    body = ["u = Gemm(x, up, upb)", "g = Gelu(u)", "d = Gemm(g, down, downb)", "y = Add(r, d)"]
    used, told = applied(graph(body))
    assert used == {"FloatLinearGelu": 1, "FloatLinearResidual": 1}
    assert told == {
        "Gemm -> toolkit.cpu::FloatLinear": 2,
        "activations behind a Linear taken in": 1,
        "residuals behind a Linear taken in": 1,
    }


TAKEN = {
    "Relu": (["u = Gemm(x, q, qb)", "y = Relu(u)"], {"FloatLinearRelu": 1}),
    "GeluTanh": (["u = Gemm(x, q, qb)", 'y = Gelu <approximate = "tanh"> (u)'], {"FloatLinearGeluTanh": 1}),
    "QuickGelu": (
        ["u = Gemm(x, q, qb)", "t = Mul(u, slope)", "g = Sigmoid(t)", "y = Mul(g, u)"], {"FloatLinearQuickGelu": 1},
    ),
    "a Linear without bias gets zeros": (["y = MatMul(x, q)"], {"FloatLinear": 1}),
    "a residual on the left": (["u = MatMul(x, q)", "y = Add(x, u)"], {"FloatLinearResidual": 1}),
    "one residual of two Linears": (
        ["u = Gemm(x, q, qb)", "d = MatMul(r, q)", "y = Add(u, d)"], {"FloatLinear": 1, "FloatLinearResidual": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken_in(case):
    body, wanted = TAKEN[case]
    assert applied(graph(body))[0] == wanted


KEPT = {
    "a product that something else reads": (
        ["u = Gemm(x, q, qb)", "g = Gelu(u)", "y = Add(g, u)"], "y", {"FloatLinear": 1, "Gelu": 1, "Add": 1},
    ),
    "a product that is an output": (["u = Gemm(x, q, qb)", "y = Gelu(u)"], "u y", {"FloatLinear": 1, "Gelu": 1}),
    "the sum of a product and itself": (["u = Gemm(x, q, qb)", "y = Add(u, u)"], "y", {"FloatLinear": 1, "Add": 1}),
    "a residual that is spread over rows": (
        ["u = Gemm(x, q, qb)", "y = Add(u, one)"], "y", {"FloatLinear": 1, "Add": 1},
    ),
    "a residual that is spread over columns": (
        ["u = Gemm(x, q, qb)", "y = Add(u, column)"], "y", {"FloatLinear": 1, "Add": 1},
    ),
    "a residual behind an activation": (
        ["u = Gemm(x, q, qb)", "g = Gelu(u)", "y = Add(g, x)"], "y", {"FloatLinearGelu": 1, "Add": 1},
    ),
    "a weight that is turned": (["u = Gemm <transB = 1> (x, q, qb)", "y = Relu(u)"], "y", {"Gemm": 1, "Relu": 1}),
    "a product that is scaled": (["y = Gemm <alpha = 0.5> (x, q, qb)"], "y", {"Gemm": 1}),
    "a bias that is scaled": (["y = Gemm <beta = 0.5> (x, q, qb)"], "y", {"Gemm": 1}),
    "rows that are turned": (["y = Gemm <transA = 1> (one, row, qb)"], "y", {"Gemm": 1}),
    "a bias of one number": (["y = Gemm(x, q, single)"], "y", {"Gemm": 1}),
    "a weight of no columns": (["y = MatMul(x, none)"], "y", {"MatMul": 1}),
    "a slope that adds an axis": (
        ["u = Gemm(x, q, qb)", "t = Mul(u, cube)", "g = Sigmoid(t)", "y = Mul(g, u)"],
        "y", {"FloatLinear": 1, "Mul": 2, "Sigmoid": 1},
    ),
    "a reader that runs on condition": (
        ["u = Gemm(x, q, qb)",
         "y = If (flag) <then_branch = a () => (float[n, 16] t) { t = Relu(u) }, "
         "else_branch = b () => (float[n, 16] e) { e = Identity(r) }>"],
        "y", {"FloatLinear": 1, "If": 1},
    ),
    "a bias for every row": (["y = Gemm(x, q, one)"], "y", {"Gemm": 1}),
    "a weight that is computed": (["w = Relu(q)", "y = Gemm(x, w, qb)"], "y", {"Relu": 1, "Gemm": 1}),
    "several weights": (["y = MatMul(x, wide)"], "y", {"MatMul": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_is_read_elsewhere_or_does_not_fit_stays(case):
    body, outputs, wanted = KEPT[case]
    assert applied(graph(body, outputs))[0] == wanted


@pytest.mark.parametrize("name", ["q", "qb", "slope"])
def test_constants_that_a_caller_may_replace_are_none(name):
    model = graph(["u = Gemm(x, q, qb)", "t = Mul(u, slope)", "g = Sigmoid(t)", "y = Mul(g, u)"])
    model.graph.inputs.append(model.graph.initializers[name])
    use_float_linear(model, Emitter(model))
    kinds = Counter(node.op_type for node in model.graph)
    assert kinds == {"FloatLinear" if name == "slope" else "Gemm": 1, "Mul": 2, "Sigmoid": 1}


def test_an_opset_without_gelu_is_left_alone():
    model = graph(["y = Gemm(x, q, qb)"], opset=19)
    assert use_float_linear(model, Emitter(model)) == []


TOKENS = """<ir_version: 10, opset_import: ["" : 23]>
tiny (float[batch, tokens, 16] x) => (float[batch, tokens, 16] y)
{
  u = MatMul(x, up)
  ub = Add(u, upb)
  g = Gelu(ub)
  d = MatMul(g, down)
  db = Add(d, downb)
  s = Add(db, x)
  y = LayerNormalization(s, column)
}"""


def test_the_lowered_file_runs_with_the_kernels_and_without(tmp_path, monkeypatch):
    """Sums with their residual on [B·S, H], whose number of rows has no name of its own in the source."""
    proto = onnx.parser.parse_model(TOKENS)
    source = graph(["u = Gemm(x, up, upb)", "d = Gemm(u, down, downb)", "y = Mul(d, column)"])
    arrays = {name: source.graph.initializers[name].const_value.numpy() for name in source.graph.initializers}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    lowered = RUNTIME.lower(
        written(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), tmp_path), tmp_path / "low"
    )
    kinds = Counter(node.op_type for node in ir.load(lowered.path).graph)
    assert (kinds["FloatLinearGelu"], kinds["FloatLinearResidual"], kinds["Add"], kinds["Gemm"]) == (1, 1, 0, 0)
    assert inspect_graph(lowered.path).linears == 2
    engine = RUNTIME.build(lowered)
    x = np.random.default_rng(0).standard_normal((2, 9, 16)).astype(np.float32)
    stock, *own = in_every_form(RUNTIME, engine, {"x": x}, monkeypatch)
    for other in own:
        np.testing.assert_allclose(other["y"], stock["y"], rtol=1e-5, atol=1e-5)


def test_who_looks_inside_finds_every_module(tmp_path):
    body = ["u = Gemm(x, up, upb)", "g = Gelu(u)", "d = Gemm(g, down, downb)", "y = Add(r, d)"]
    model = graph(body)
    owners = {"u": "fc1", "g": "act", "d": "fc2"}
    for node in model.graph:
        path = owners.get(node.outputs[0].name, "")
        node.metadata_props[SCOPES] = str(["", "block", *([f"block.{path}"] if path else [])])
    before = outputs_of(model)
    use_float_linear(model, Emitter(model))
    assert [node.metadata_props[SCOPES] for node in model.graph] == [
        str(["", "block", "block.act"]),
        str(["", "block"]),
    ]
    model.producer_name = "toolkit"
    ir.save(model, tmp_path / "model.onnx")
    tapped = TappedGraph(tmp_path / "model.onnx", rounded=False)
    found = Modules(tapped.proto)
    assert {module.path for module in found.modules} >= {"block.fc1", "block.act", "block.fc2"}
    assert not found.ambiguous
    np.testing.assert_allclose(outputs_of(ir.from_proto(tapped.proto))[0], before[0], rtol=1e-5, atol=1e-5)
