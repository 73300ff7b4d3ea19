"""Which int8 Linears of a lowered graph become the toolkit's own operators, and what goes into them."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass
from ort_graphs import in_every_form, written

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.kernels.expanded import SCOPES
from runtimes._onnxruntime.operators import contents
from runtimes._onnxruntime.rules.own_int8_linear import use_int8_linear
from runtimes._onnxruntime.saturation import quantizes_activations
from runtimes._onnxruntime.tapped import TappedGraph
from runtimes.ort_cpu import RUNTIME
from toolkit.compare.modules import Modules

H, F = 16, 32
OPSETS = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
TEXT = OPSETS + "\ntiny ({inputs}) => ({outputs})\n{{\n{body}\n}}"
LINEAR = "{y} = com.microsoft.MatMulIntegerToFloat({x}, {w}, s, {w}s, z, , {w}b)"


def linear(x, w, y):
    return LINEAR.format(x=x, w=w, y=y)


def weight(rng, name, k, n):
    return {
        name: rng.integers(-127, 128, (k, n)).astype(np.int8),
        f"{name}s": rng.uniform(0.001, 0.01, n).astype(np.float32),
        f"{name}b": rng.standard_normal(n).astype(np.float32),
    }


def constants():
    rng = np.random.default_rng(0)
    made = {"s": np.float32(0.03), "z": np.uint8(120), "slope": np.float32(1.702)}
    for name, (k, n) in {"q": (H, H), "k": (H, H), "v": (H, H), "up": (H, F), "down": (F, H)}.items():
        made |= weight(rng, name, k, n)
    return made | {name: rng.uniform(0.5, 2, n).astype(np.float32) for name, n in {"before": H, "hidden": F}.items()}


def graph(body, outputs="y", inputs=f"float[b, t, {H}] x", widths=None, opset=23):
    text = TEXT.format(
        opset=opset,
        inputs=inputs,
        outputs=", ".join(f"float[b, t, {(widths or {}).get(name, H)}] {name}" for name in outputs.split()),
        body="\n".join(body),
    )
    proto = onnx.parser.parse_model(text)
    read = {name for node in proto.graph.node for name in node.input}
    arrays = {name: array for name, array in constants().items() if name in read}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph:  # shape inference does not know Microsoft's operators; the rule before leaves shapes
        for output in node.outputs:
            if output.shape is None:
                width = constants()[node.inputs[1].name].shape[1] if node.domain else node.inputs[0].shape[-1]
                output.shape, output.type = ir.Shape(["b", "t", width]), ir.TensorType(ir.DataType.FLOAT)
            if node.op_type == "QuantizeLinear":
                output.type = ir.TensorType(ir.DataType.UINT8)
    return model


def outputs_of(model):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = {i.name: rng.standard_normal((2, 3, i.shape[-1])).astype(np.float32) for i in session.get_inputs()}
    return session.run(None, feeds)


def applied(model):
    """The operators left and the counts told; the functions compute what the graph did before."""
    before = outputs_of(model)
    steps = use_int8_linear(model, Emitter(model))
    for found, want in zip(outputs_of(model), before, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    RemoveUnusedNodesPass()(model)
    return dict(Counter(node.op_type for node in model.graph)), {step.what: step.count for step in steps}


ROUND = "c = QuantizeLinear(x, s, z)"
SMOOTH = ["m = Mul(x, before)", "c = QuantizeLinear(m, s, z)"]


def test_a_transformer_block():
    body = [
        *SMOOTH, *(linear("c", name, f"y{name}") for name in "qkv"),
        "a0 = Add(yq, yk)", "a = Add(a0, yv)",
        "ca = QuantizeLinear(a, s, z)", linear("ca", "q", "o"), "r = Add(o, x)",
        "cr = QuantizeLinear(r, s, z)", linear("cr", "up", "u"), "g = Gelu(u)",
        "gm = Mul(g, hidden)", "cg = QuantizeLinear(gm, s, z)", linear("cg", "down", "d"), "y = Add(r, d)",
    ]  # fmt: skip
    used, told = applied(graph(body))
    assert used == {
        "Int8LinearQkvSmoothed": 1, "Add": 2, "Int8LinearResidual": 1,
        "Int8LinearGeluToSmoothedCodes": 1, "Int8LinearOfCodesResidual": 1,
    }  # fmt: skip
    assert told == {
        "MatMulIntegerToFloat -> toolkit.cpu::Int8Linear": 6,
        "three Linears of one input in one": 1,
        "multiplications before an int8 Linear taken in": 1,
        "activations behind an int8 Linear taken in": 1,
        "residuals behind an int8 Linear taken in": 2,
        "int8 Linears that write uint8 for the next": 1,
    }


ACTIVATIONS = {
    "Relu": ["y = Relu(u)"],
    "Gelu": ["y = Gelu(u)"],
    "GeluTanh": ['y = Gelu <approximate = "tanh"> (u)'],
    "QuickGelu": ["t = Mul(u, slope)", "g = Sigmoid(t)", "y = Mul(g, u)"],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    used, _ = applied(graph([ROUND, linear("c", "q", "u"), *ACTIVATIONS[name]]))
    assert used == {f"Int8Linear{name}": 1}


def test_a_factor_behind_the_product_goes_into_its_scales():
    used, told = applied(graph([ROUND, linear("c", "q", "u"), "f = Mul(u, before)", "y = Add(f, x)"]))
    assert used == {"Int8LinearResidual": 1}
    assert told["multiplications behind an int8 Linear taken in"] == 1


def test_a_linear_without_bias_gets_zeros():
    product = "y = com.microsoft.MatMulIntegerToFloat(c, q, s, qs, z)"
    assert applied(graph([ROUND, product]))[0] == {"Int8Linear": 1}


def test_a_rounding_that_nothing_reads_is_no_reader():
    body = [
        *SMOOTH, linear("c", "q", "u"), "g = Gelu(u)",
        "dead = QuantizeLinear(g, s, z)", "dead2 = QuantizeLinear(m, s, z)", "d = DequantizeLinear(dead, s, z)",
        "cg = QuantizeLinear(g, s, z)", linear("cg", "k", "y"),
    ]  # fmt: skip
    assert applied(graph(body))[0] == {"Int8LinearSmoothedGeluToCodes": 1, "Int8LinearOfCodes": 1}


def test_two_linears_share_one_rounding():
    used, _ = applied(graph([ROUND, linear("c", "q", "y"), linear("c", "k", "w")], "y w"))
    assert used == {"QuantizeLinear": 1, "Int8LinearOfCodes": 2}


KEPT = {
    "a hidden tensor that is also an output": (
        [ROUND, linear("c", "up", "u"), "g = Gelu(u)", "cg = QuantizeLinear(g, s, z)", linear("cg", "down", "y")],
        "y g", {"Int8LinearGelu": 1, "Int8Linear": 1},
    ),
    "a product that something else reads": (
        [ROUND, linear("c", "q", "u"), "g = Gelu(u)", "y = Add(g, u)"],
        "y", {"Int8Linear": 1, "Gelu": 1, "Add": 1},
    ),
    "the sum of a product and itself": (
        [ROUND, linear("c", "q", "u"), "y = Add(u, u)"], "y", {"Int8Linear": 1, "Add": 1},
    ),
    "a residual that is spread": (
        [ROUND, linear("c", "q", "u"), "y = Add(u, before)"], "y", {"Int8Linear": 1, "Add": 1},
    ),
    "a smoothed tensor that something else reads": (
        [*SMOOTH, linear("c", "q", "u"), "g = Relu(u)", "y = Add(g, m)"],
        "y", {"Mul": 1, "Int8LinearRelu": 1, "Add": 1},
    ),
    "a residual behind an activation": (
        [ROUND, linear("c", "q", "u"), "g = Gelu(u)", "y = Add(g, x)"], "y", {"Int8LinearGelu": 1, "Add": 1},
    ),
    "codes that something else reads too": (
        [ROUND, linear("c", "q", "u"), "d = DequantizeLinear(c, s, z)", "y = Sub(u, d)"],
        "y", {"QuantizeLinear": 1, "Int8LinearOfCodes": 1, "DequantizeLinear": 1, "Sub": 1},
    ),
    "codes that no Linear reads": (
        [ROUND, linear("c", "q", "u"), "d = QuantizeLinear(u, s, z)", "y = DequantizeLinear(d, s, z)"],
        "y", {"Int8Linear": 1, "QuantizeLinear": 1, "DequantizeLinear": 1},
    ),
    "scales that are found as it runs": (
        ["c, ds, dz = DynamicQuantizeLinear(x)", "y = com.microsoft.MatMulIntegerToFloat(c, q, ds, qs, dz, , qb)"],
        "y", {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_is_read_elsewhere_or_does_not_fit_stays(case):
    body, outputs, wanted = KEPT[case]
    model = graph(body, outputs, widths={"g": F} if outputs == "y g" else None)
    assert applied(model)[0] == wanted


def test_an_opset_without_gelu_is_left_alone():
    model = graph([ROUND, linear("c", "q", "y")], opset=19)
    assert use_int8_linear(model, Emitter(model)) == []


def test_the_lowered_file_runs_with_the_kernels_and_without(tmp_path, monkeypatch):
    proto = """<ir_version: 10, opset_import: ["" : 23]>
    tiny (float[batch, tokens, 16] x) => (float[batch, tokens, 16] y)
    {
      c = QuantizeLinear(x, s, sz)
      d = DequantizeLinear(c, s, sz)
      w = DequantizeLinear<axis = 1>(q, qs)
      m = MatMul(d, w)
      a = Add(m, qb)
      g = Gelu(a)
      y = Add(g, x)
    }"""
    model = onnx.parser.parse_model(proto)
    arrays = {name: constants()[name] for name in ("q", "qs", "qb", "s")} | {"sz": np.int8(0)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    lowered = RUNTIME.lower(
        written(ir.from_proto(onnx.shape_inference.infer_shapes(model)), tmp_path), tmp_path / "low"
    )
    assert [node.op_type for node in ir.load(lowered.path).graph] == ["Int8LinearGelu", "Add"]
    x = np.random.default_rng(0).standard_normal((2, 9, 16)).astype(np.float32)
    assert quantizes_activations(contents(lowered.path).operators)
    engine = RUNTIME.build(lowered)
    stock, *own = in_every_form(RUNTIME, engine, {"x": x}, monkeypatch)
    for other in own:
        np.testing.assert_allclose(other["y"], stock["y"], rtol=1e-5, atol=1e-5)


def test_who_looks_inside_finds_every_module(tmp_path):
    body = [
        ROUND, *(linear("c", name, f"y{name}") for name in "qkv"), "a0 = Add(yq, yk)", "a = Add(a0, yv)",
        "ca = QuantizeLinear(a, s, z)", linear("ca", "up", "u"), "g = Gelu(u)",
        "gm = Mul(g, hidden)", "cg = QuantizeLinear(gm, s, z)", linear("cg", "down", "d"), "y = Add(d, x)",
    ]  # fmt: skip
    model = graph(body)
    owners = {
        "yq": "q",
        "yk": "k",
        "yv": "v",
        "u": "fc1",
        "g": "act",
        "gm": "fc2",
        "cg": "fc2",
        "d": "fc2",
        "y": "block",
    }
    for node in model.graph:
        path = owners.get(node.outputs[0].name, "block")
        node.metadata_props[SCOPES] = str(["", "block", *([f"block.{path}"] if path != "block" else [])])
    before = outputs_of(model)
    use_int8_linear(model, Emitter(model))
    RemoveUnusedNodesPass()(model)
    model.producer_name = "toolkit"
    ir.save(model, tmp_path / "model.onnx")
    tapped = TappedGraph(tmp_path / "model.onnx", rounded=False)
    found = Modules(tapped.proto)
    assert {module.path for module in found.modules} >= {
        f"block.{name}" for name in ("q", "k", "v", "fc1", "act", "fc2")
    }
    assert not found.ambiguous
    np.testing.assert_allclose(outputs_of(ir.from_proto(tapped.proto))[0], before[0], rtol=1e-5, atol=1e-5)
