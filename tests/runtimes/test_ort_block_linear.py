"""Weights in blocks against the numbers that they stand for, whatever their signs, zero points and readers."""

from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from ort_graphs import written

from runtimes import portable_session
from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.lowering import lower_graph
from runtimes._onnxruntime.operators import contents
from runtimes._onnxruntime.rules.block_linear import lower_block_linears
from runtimes._onnxruntime.rules.merge_linears import merge_linears
from runtimes._onnxruntime.saturation import quantizes_activations
from runtimes.ort_cpu import RUNTIME

DTYPES = {"int4": TensorProto.INT4, "uint4": TensorProto.UINT4, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
RANGES = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-127, 128), "uint8": (0, 256)}
EXACT = partial(lower_block_linears, accuracy_level=0)


class Blocks:
    """A random weight in blocks of `size` along `axis`, its ONNX constants and its numbers."""

    def __init__(self, name, shape, dtype, axis=0, size=32, zero=None, seed=0):
        rng = np.random.default_rng(seed)
        self.name, self.shape, self.dtype, self.axis, self.size = name, shape, dtype, axis, size
        grid = tuple(n // size if index == axis else n for index, n in enumerate(shape))
        self.integers = rng.integers(*RANGES[dtype], shape)
        self.scale = (rng.random(grid) / 16).astype(np.float32)
        self.zero = (
            rng.integers(*RANGES[dtype], grid) if zero == "any" else np.full(grid, zero) if zero is not None else None
        )
        spread = partial(np.repeat, repeats=size, axis=axis)
        zeros = 0 if self.zero is None else spread(self.zero)
        self.numbers = ((self.integers - zeros) * spread(self.scale)).astype(np.float32)

    def constants(self):
        kind = DTYPES[self.dtype]
        yield helper.make_tensor(f"{self.name}_q", kind, self.shape, self.integers.ravel())
        yield helper.make_tensor(f"{self.name}_s", TensorProto.FLOAT, self.scale.shape, self.scale.ravel())
        if self.zero is not None:
            yield helper.make_tensor(f"{self.name}_z", kind, self.zero.shape, self.zero.ravel())

    def node(self):
        inputs = [f"{self.name}_q", f"{self.name}_s", *([f"{self.name}_z"] if self.zero is not None else [])]
        attributes = {"axis": self.axis, "block_size": self.size}
        return helper.make_node("DequantizeLinear", inputs, [self.name], **attributes)


def model_of(nodes, inputs, outputs, constants, infos=()):
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, list(constants), value_info=list(infos))
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def lowered(model, folder, *rules):
    return lower_graph(written(model, folder), folder / "lowered", "ort-cpu", rules)


def run(graph, **feeds):
    return portable_session(graph.path).run(feeds)


def linear(weight, bias=None):
    k, n = weight.shape
    nodes = [weight.node(), helper.make_node("MatMul", ["x", weight.name], ["y" if bias is None else "p"])]
    constants = list(weight.constants())
    if bias is not None:
        nodes.append(helper.make_node("Add", ["p", "b"], ["y"]))
        constants.append(helper.make_tensor("b", TensorProto.FLOAT, bias.shape, bias.ravel()))
    return model_of(nodes, [floats("x", "batch", "sequence", k)], [floats("y", "batch", "sequence", n)], constants)


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize(
    ("dtype", "zero", "inputs"),
    [
        ("int4", None, 3), ("int4", 0, 3), ("int4", "any", 4), ("uint4", 8, 3), ("uint4", "any", 4), ("uint4", None, 4),
        ("int8", None, 3), ("int8", "any", 4), ("uint8", 128, 3), ("uint8", "any", 4),
    ],
)  # fmt: skip
def test_linears(dtype, zero, inputs, size, tmp_path):
    # Three or six blocks a column: an odd count leaves half a byte of packed zero points empty.
    weight = Blocks("w", (96, 40), dtype, size=size, zero=zero)
    graph = lowered(linear(weight), tmp_path, EXACT)
    (node,) = list(ir.load(graph.path).graph)
    assert (node.op_type, len(node.inputs)) == ("MatMulNBits", inputs)
    x = np.random.default_rng(1).standard_normal((2, 5, 96)).astype(np.float32)
    np.testing.assert_allclose(run(graph, x=x)["y"], x @ weight.numbers, rtol=0, atol=2e-4)


def test_a_bias_goes_into_the_product(tmp_path):
    weight, bias = Blocks("w", (64, 24), "int4"), np.linspace(-1, 1, 24, dtype=np.float32)
    graph = lowered(linear(weight, bias), tmp_path, EXACT)
    assert [node.op_type for node in ir.load(graph.path).graph] == ["MatMulNBits"]
    x = np.random.default_rng(1).standard_normal((1, 3, 64)).astype(np.float32)
    np.testing.assert_allclose(run(graph, x=x)["y"], x @ weight.numbers + bias, rtol=0, atol=1e-4)


def test_the_runtime_rounds_activations_to_int8(tmp_path):
    weight = Blocks("w", (64, 24), "int4")
    graph = RUNTIME.lower(written(linear(weight), tmp_path, "int4"), tmp_path / "lowered")
    (function,) = ir.load(graph.path).functions.values()
    (product,) = [node for node in function if node.op_type == "MatMulNBits"]
    assert product.attributes.get_int("accuracy_level", 0) == 4
    x = np.random.default_rng(1).standard_normal((1, 3, 64)).astype(np.float32)
    expected = x @ weight.numbers
    assert np.linalg.norm(run(graph, x=x)["y"] - expected) < 0.02 * np.linalg.norm(expected)


def tied(table, head=True):
    v, k = table.shape
    nodes = [table.node(), helper.make_node("Gather", [table.name, "ids"], ["rows"], axis=0)]
    outputs = [floats("rows", "batch", "sequence", k)]
    if head:
        nodes += [helper.make_node("Transpose", [table.name], ["t"], perm=[1, 0])]
        nodes += [helper.make_node("MatMul", ["x", "t"], ["y"])]
        outputs.append(floats("y", "batch", "sequence", v))
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])]
    inputs += [floats("x", "batch", "sequence", k)] if head else []
    return model_of(nodes, inputs, outputs, table.constants())


@pytest.mark.parametrize(("dtype", "zero"), [("int4", None), ("uint4", "any"), ("int8", None), ("uint8", "any")])
def test_a_tied_table_is_stored_once(dtype, zero, tmp_path):
    table = Blocks("w", (300, 96), dtype, axis=1, zero=zero)
    graph = lowered(tied(table), tmp_path, EXACT)
    kinds = [node.op_type for node in ir.load(graph.path).graph]
    assert sorted(kinds) == ["GatherBlockQuantized", "MatMulNBits"]
    x = np.random.default_rng(1).standard_normal((2, 3, 96)).astype(np.float32)
    ids = np.array([[0, 299, 7], [150, 1, 1]])
    outputs = run(graph, x=x, ids=ids)
    np.testing.assert_allclose(outputs["rows"], table.numbers[ids], rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs["y"], x @ table.numbers.T, rtol=0, atol=1e-3)
    places = regions(graph.path)
    assert places["w_q.packed"] == places["w_q.packed.rows"]


def regions(path):
    """Location, offset and length of each initializer's bytes."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in tensors}


def test_a_small_tied_table_stays_in_the_graph_file(tmp_path):
    table = Blocks("w", (4, 32), "int4", axis=1)
    graph = lowered(tied(table), tmp_path, EXACT)
    ids = np.array([[0, 3]])
    outputs = run(graph, ids=ids, x=np.ones((1, 2, 32), np.float32))
    np.testing.assert_allclose(outputs["rows"], table.numbers[ids], rtol=0, atol=1e-6)


def test_a_table_without_a_head(tmp_path):
    graph = lowered(tied(Blocks("w", (50, 64), "int8", axis=1), head=False), tmp_path, EXACT)
    assert [node.op_type for node in ir.load(graph.path).graph] == ["GatherBlockQuantized"]


def test_other_readers_keep_the_dequantized_weight(tmp_path):
    weight = Blocks("w", (64, 24), "int8")
    nodes = [weight.node(), helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Neg", ["w"], ["n"])]
    outputs = [floats("y", "batch", 24), floats("n", 64, 24)]
    model = model_of(nodes, [floats("x", "batch", 64)], outputs, weight.constants())
    graph = lowered(model, tmp_path, EXACT)
    assert {step.what: step.count for step in graph.steps} == {
        "int8 Linears -> MatMulNBits": 1,
        "DequantizeLinear kept": 1,
    }
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    outputs = run(graph, x=x)
    np.testing.assert_allclose(outputs["y"], x @ weight.numbers, rtol=0, atol=1e-3)
    np.testing.assert_allclose(outputs["n"], -weight.numbers, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", ["computed scale", "per channel", "ragged blocks"])
def test_what_is_not_in_blocks_is_left_alone(change):
    weight = Blocks("w", (64, 24), "int8")
    model = linear(weight)
    (node,) = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    if change == "per channel":
        del node.attributes["block_size"]
    elif change == "ragged blocks":
        node.attributes["block_size"] = ir.AttrInt64("block_size", 48)
    else:
        scale = model.graph.initializers.pop("w_s")
        model.graph.inputs.append(scale)
    lower_block_linears(model, Emitter(model))
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul"]


def gated(first, second, corrected=False, bias=False):
    """silu(x·W1 + ..) · (x·W2 + ..), as a gated MLP has it; a correction is what sums over blocks of x add."""
    nodes, constants, infos = [], [], []
    k, n = first.shape
    for weight in (first, second):
        name = weight.name
        nodes += [weight.node(), helper.make_node("MatMul", ["x", name], [f"{name}p"])]
        constants += weight.constants()
        value = f"{name}p"
        infos.append(floats(value, "batch", n))
        extra = ([f"{name}c"] if corrected else []) + ([f"{name}b"] if bias else [])
        if corrected:
            constants.append(helper.make_tensor(f"{name}o", TensorProto.FLOAT, (2, n), np.arange(2.0 * n) / n))
            nodes.append(helper.make_node("MatMul", ["sums", f"{name}o"], [f"{name}c"]))
            infos.append(floats(f"{name}c", "batch", n))
        if bias:
            constants.append(helper.make_tensor(f"{name}b", TensorProto.FLOAT, (n,), np.linspace(-1, 1, n)))
        for term in extra:
            nodes.append(helper.make_node("Add", [value, term], [f"{value}_{term}"]))
            value = f"{value}_{term}"
            infos.append(floats(value, "batch", n))
        nodes.append(helper.make_node("Identity", [value], [f"{name}y"]))
    values = [node.input[0] for node in nodes if node.op_type == "Identity"]
    nodes = [node for node in nodes if node.op_type != "Identity"]
    nodes += [helper.make_node("Sigmoid", values[:1], ["g"]), helper.make_node("Mul", [values[0], "g"], ["silu"])]
    nodes.append(helper.make_node("Mul", ["silu", values[1]], ["y"]))
    inputs = [floats("x", "batch", k), *([floats("sums", "batch", 2)] if corrected else [])]
    return model_of(nodes, inputs, [floats("y", "batch", n)], constants, infos)


@pytest.mark.parametrize(("corrected", "bias", "adds"), [(False, False, 0), (True, False, 1), (True, True, 2)])
def test_gate_and_up_become_one(corrected, bias, adds, tmp_path):
    first, second = Blocks("w", (64, 24), "int4", seed=1), Blocks("u", (64, 24), "int4", seed=2)
    model = gated(first, second, corrected, bias)
    plain = lowered(model, tmp_path / "plain", EXACT)
    merged = lowered(gated(first, second, corrected, bias), tmp_path / "merged", merge_linears, EXACT)
    kinds = [node.op_type for node in ir.load(merged.path).graph]
    assert (kinds.count("MatMulNBits"), kinds.count("Split"), kinds.count("Add")) == (1, 1, adds)
    assert kinds.count("MatMul") == int(corrected)
    feeds = {"x": np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)}
    feeds |= {"sums": np.ones((3, 2), np.float32)} if corrected else {}
    np.testing.assert_allclose(run(merged, **feeds)["y"], run(plain, **feeds)["y"], rtol=1e-4, atol=1e-4)


def test_weights_of_different_kinds_stay_apart(tmp_path):
    first, second = Blocks("w", (64, 24), "int4", seed=1), Blocks("u", (64, 24), "int8", seed=2)
    graph = lowered(gated(first, second), tmp_path, merge_linears, EXACT)
    kinds = [node.op_type for node in ir.load(graph.path).graph]
    assert (kinds.count("MatMulNBits"), kinds.count("Split")) == (2, 0)


def test_a_tied_int8_table_opens_before_it_is_lowered(tmp_path):
    # The option that keeps integer products exact without VNNI cannot load such a graph.
    table = Blocks("w", (50, 64), "int8", axis=1, zero=0)
    graph = written(tied(table), tmp_path)
    assert not quantizes_activations(contents(graph.path).operators)
    ids = np.array([[3, 49]])
    x = np.ones((1, 2, 64), np.float32)
    np.testing.assert_allclose(run(graph, ids=ids, x=x)["rows"], table.numbers[ids], rtol=0, atol=1e-6)


def test_integer_products_are_seen(tmp_path):
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    outputs = [helper.make_tensor_value_info("q", TensorProto.UINT8, ["n"])]
    path = written(model_of([node], [floats("x", "n")], outputs, []), tmp_path).path
    assert quantizes_activations(contents(path).operators)
    path.write_bytes(b"not a graph")
    assert not quantizes_activations(contents(path).operators)
