"""The toolkit's own kernels against fp64 on the rounded activations, and against their functions; their building."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass
from ort_graphs import opened

from quantize.block_nodes import Offsets
from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.kernels import DOMAIN, build
from runtimes._onnxruntime.kernels.function import LINEAR, LINEAR_OFFSET, linear_function
from runtimes._onnxruntime.kernels.register import register_kernels
from runtimes._onnxruntime.operators import contents
from runtimes._onnxruntime.rules.own_linear import use_block_linear

ROOT = Path(__file__).resolve().parents[2]
FORMS = {"fastest": "", "portable": "portable"}


class Weight:
    """Random blocks, packed as `MatMulNBits` has them; `numbers` [N, K] float64 is what they stand for."""

    def __init__(self, k, n, bits=4, size=32, halves=True, seed=0):
        rng = np.random.default_rng(seed)
        self.k, self.n, self.bits, self.size = k, n, bits, size
        codes = rng.integers(0, 1 << bits, (n, k // size, size)).astype(np.uint8)
        # The end of the range, -8 or -128, is where sixteen bits are shortest.
        codes[0] = 0
        self.scales = ((rng.random((n, k // size)) + 0.1) / (1 << bits)).astype(np.float32)
        self.offsets = (rng.standard_normal((k // size, n)) * 0.1).astype(np.float32)
        if halves:
            self.scales, self.offsets = (a.astype(np.float16).astype(np.float32) for a in (self.scales, self.offsets))
        self.packed = codes if bits == 8 else codes[..., 0::2] | codes[..., 1::2] << 4
        blocks = (codes.astype(np.float64) - (1 << (bits - 1))) * self.scales[..., None]
        self.plain = blocks.reshape(n, k)
        self.shifted = (blocks + self.offsets.T[..., None]).reshape(n, k)

    @property
    def attributes(self):
        return {"K": self.k, "N": self.n, "bits": self.bits, "block_size": self.size}

    def numbers(self, op_type):
        return self.shifted if op_type == LINEAR_OFFSET else self.plain

    def constants(self, op_type=LINEAR):
        arrays = {"B": self.packed, "scales": self.scales, "offsets": self.offsets}
        return [constant(name, array) for name, array in arrays.items() if name != "offsets" or op_type != LINEAR]


def constant(name, array):
    tensor = ir.tensor(array)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def value(name, shape):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def model_of(nodes, x, constants, functions=()):
    opsets = {"": 23, "com.microsoft": 1, **({DOMAIN: 1} if functions else {})}
    outputs = [nodes[-1].outputs[0]]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=constants, opset_imports=opsets, name="tiny")
    return ir.Model(graph, ir_version=10, functions=list(functions))


def named(node, shape, name="y"):
    node.outputs[0].name, node.outputs[0].shape = name, ir.Shape(shape)
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node


def own_model(weight, op_type=LINEAR, lead=("batch", "sequence")):
    x, constants = value("x", [*lead, weight.k]), weight.constants(op_type)
    node = named(ir.node(op_type, [x, *constants], weight.attributes, domain=DOMAIN), [*lead, weight.n])
    return model_of([node], x, constants, [linear_function(op_type, 23)])


def run(model, x, library=None, threads=1):
    return opened(model, library, threads).run(None, {"x": x})[0]


def inputs(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x, step):
    """Activations as the kernels see them: int8 with one scale a step, in float64."""
    steps = x.astype(np.float64).reshape(*x.shape[:-1], x.shape[-1] // step, step)
    scale = np.abs(steps).max(-1, keepdims=True) / 127
    return (np.rint(steps / np.where(scale > 0, scale, 1)) * scale).reshape(x.shape)


def distance(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def sqnr(found, wanted):
    return -20 * np.log10(distance(found, wanted))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("halves", [True, False], ids=["half-scales", "float-scales"])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("op_type", [LINEAR, LINEAR_OFFSET])
def test_products_are_exact_on_the_rounded_activations(kernels, monkeypatch, op_type, bits, size, halves, form):
    monkeypatch.setenv(build.SWITCH, FORMS[form])
    weight = Weight(1536, 37, bits, size, halves)
    session = opened(own_model(weight, op_type), kernels)
    for rows in (1, 2, 5, 33):
        x = inputs(1, rows, 1536, seed=rows)
        wanted = rounded(x, min(size, 32)) @ weight.numbers(op_type).T
        assert distance(session.run(None, {"x": x})[0], wanted) < 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 640])
def test_any_number_of_outputs(kernels, monkeypatch, n, form):
    monkeypatch.setenv(build.SWITCH, FORMS[form])
    weight = Weight(48, n, 4, 16)
    x = inputs(1, 3, 48)
    assert distance(run(own_model(weight), x, kernels), rounded(x, 16) @ weight.plain.T) < 1e-6


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 3, 2), (0, 3), (1, 300)])
def test_any_leading_dimensions(kernels, lead):
    weight = Weight(64, 20)
    x = inputs(*lead, 64)
    for op_type in (LINEAR, LINEAR_OFFSET):
        y = run(own_model(weight, op_type, [f"d{i}" for i in range(len(lead))]), x, kernels)
        wanted = rounded(x, 32) @ weight.numbers(op_type).T
        assert y.shape == wanted.shape
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_the_switch_picks_the_plain_form(kernels, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "portable")
    assert build.instructions(kernels) == "plain C++"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("op_type", [LINEAR, LINEAR_OFFSET])
def test_the_function_means_the_same(kernels, op_type, bits):
    weight = Weight(1536, 96, bits)
    model, x = own_model(weight, op_type), inputs(2, 5, 1536)
    assert sqnr(run(model, x, kernels), run(model, x)) > 40
    assert sqnr(run(model, x), x.astype(np.float64) @ weight.numbers(op_type).T) > 40


def test_a_registered_library_is_what_runs(kernels):
    # Blocks of 128 are rounded in steps of 32 by the kernel, and as a whole by ONNX Runtime's.
    weight = Weight(256, 48, size=128)
    model, x = own_model(weight), inputs(1, 2, 256)
    wanted = rounded(x, 32) @ weight.plain.T
    assert distance(run(model, x, kernels), wanted) < 1e-6
    assert distance(run(model, x), wanted) > 1e-4


@pytest.mark.parametrize("rows", [1, 7, 130])
def test_threads_do_not_change_a_bit(kernels, rows):
    model, x = own_model(Weight(576, 613), LINEAR_OFFSET), inputs(1, rows, 576)
    one, two, three = (run(model, x, kernels, threads) for threads in (1, 2, 3))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


def test_a_row_alone_is_what_it_is_among_others(kernels):
    session, x = opened(own_model(Weight(576, 40)), kernels), inputs(1, 6, 576)
    together = session.run(None, {"x": x})[0]
    for row in range(6):
        alone = session.run(None, {"x": x[:, row : row + 1]})[0]
        np.testing.assert_allclose(alone[:, 0], together[:, row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_vanish(kernels, monkeypatch, bad, bits, form):
    monkeypatch.setenv(build.SWITCH, FORMS[form])
    for op_type in (LINEAR, LINEAR_OFFSET):
        session = opened(own_model(Weight(96, 20, bits), op_type), kernels)
        clean = inputs(1, 6, 96)
        dirty = clean.copy()
        dirty[0, 4, 37] = bad
        before, after = (session.run(None, {"x": x})[0] for x in (clean, dirty))
        assert np.isnan(after[0, 4]).all()
        np.testing.assert_array_equal(np.delete(after, 4, 1), np.delete(before, 4, 1))
        assert np.isnan(session.run(None, {"x": dirty[:, 4:5]})[0]).all()


@pytest.mark.parametrize("form", FORMS)
def test_zeros_and_numbers_at_the_ends_of_the_range(kernels, monkeypatch, form):
    monkeypatch.setenv(build.SWITCH, FORMS[form])
    weight = Weight(64, 20)
    x = np.zeros((1, 4, 64), np.float32)
    x[0, 1], x[0, 2], x[0, 3, ::7] = 1e-40, 1e30, -5e-20
    y = run(own_model(weight), x, kernels)
    assert not y[0, 0].any()
    assert np.abs(y[0, 1]).max() < 1e-28
    for row in (2, 3):
        assert distance(y[0, row].astype(np.float64), rounded(x[0, row], 32) @ weight.plain.T) < 1e-6


@pytest.mark.parametrize("broken", ["short", "variable"])
def test_weights_that_do_not_fit_are_refused(kernels, broken):
    weight = Weight(64, 20)
    if broken == "short":
        weight.packed = weight.packed[:19]
        model = own_model(weight)
    else:
        model = own_model(weight)
        model.graph.inputs.append(model.graph.initializers.pop("scales"))
    with pytest.raises(Exception, match="elements" if broken == "short" else "must be a constant"):
        opened(model, kernels)


def test_another_width_is_refused(kernels):
    model = own_model(Weight(64, 20))
    model.graph.inputs[0].shape = ir.Shape(["batch", "sequence", "width"])
    with pytest.raises(Exception, match="must be 64"):
        run(model, inputs(1, 2, 96), kernels)


def nbits(weight, x, *, level=4, zeros=None, bias=None, lead=("batch", "sequence"), name="y"):
    constants = weight.constants()
    ends = [constant(n, a) if a is not None else None for n, a in (("zeros", zeros), ("none", None), ("bias", bias))]
    kept = [*constants, *(each for each in ends if each is not None)]
    attributes = {**weight.attributes, "accuracy_level": level}
    node = ir.node("MatMulNBits", [x, *constants, *ends], attributes, domain="com.microsoft")
    return named(node, [*lead, weight.n], name), kept


def ruled(model):
    before = ir.from_proto(ir.to_proto(model))
    steps = use_block_linear(model, Emitter(model))
    RemoveUnusedNodesPass()(model)
    return before, steps


def op_types(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_products_become_own_nodes_and_run_the_same_without_a_library(bits, bias):
    weight, x = Weight(64, 20, bits), value("x", ["batch", "sequence", 64])
    node, constants = nbits(weight, x, bias=inputs(20) if bias else None)
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'layer']"
    model = model_of([node], x, constants)
    before, steps = ruled(model)
    assert op_types(model) == [LINEAR, *(["Add"] if bias else [])]
    assert model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] == "['', 'layer']"
    assert [step.count for step in steps] == [1]
    feed = inputs(2, 3, 64)
    np.testing.assert_array_equal(run(model, feed), run(before, feed))


@pytest.mark.parametrize("change", [{"level": 0}, {"zeros": np.full((20, 1), 0x77, np.uint8)}])
def test_other_products_stay(change):
    weight, x = Weight(64, 20), value("x", ["batch", "sequence", 64])
    node, constants = nbits(weight, x, **change)
    model = model_of([node], x, constants)
    _, steps = ruled(model)
    assert (op_types(model), steps, dict(model.functions)) == (["MatMulNBits"], [], {})


def carried(weight, lead=("batch", "sequence")):
    """A product completed by the offsets of its grid, as the quantizer writes it."""
    x = value("x", [*lead, weight.k])
    node, constants = nbits(weight, x, lead=lead)
    model = model_of([node], x, [*constants, constant("offsets", weight.offsets)])
    product, model_node = model.graph.outputs[0], model.graph[0]
    # The quantizer works on a MatMul, whose second input is [K, N].
    stand_in = constant("stand_in", np.zeros((weight.k, weight.n), np.float32))
    kept = model_node.inputs[1]
    model_node.replace_input_with(1, stand_in)
    Offsets(model.graph).add(model_node, model.graph.initializers["offsets"], weight.size)
    model_node.replace_input_with(1, kept)
    assert product is not model.graph.outputs[0]
    model.graph.outputs[0].type, model.graph.outputs[0].shape = product.type, product.shape
    return model


@pytest.mark.parametrize("lead", [("sequence",), ("batch", "sequence")])
@pytest.mark.parametrize(("bits", "size"), [(4, 32), (8, 32), (4, 64)])
def test_offsets_become_part_of_the_node(kernels, bits, size, lead):
    weight = Weight(128, 20, bits, size)
    model = carried(weight, lead)
    before, steps = ruled(model)
    assert op_types(model) == [LINEAR_OFFSET]
    assert model.graph.outputs[0].name == before.graph.outputs[0].name
    assert [step.count for step in steps] == [1]
    x = inputs(*range(2, 2 + len(lead)), 128)
    np.testing.assert_allclose(run(model, x), run(before, x), rtol=1e-5, atol=1e-6)
    assert distance(run(model, x, kernels), rounded(x, 32) @ weight.shifted.T) < 1e-6


@pytest.mark.parametrize("spoiled", ["other tensor", "other blocks", "kept dimension"])
def test_what_only_looks_like_offsets_stays(spoiled):
    model = carried(Weight(128, 20))
    reduce = next(node for node in model.graph if node.op_type == "ReduceSum")
    reshape = reduce.inputs[0].producer()
    if spoiled == "other tensor":
        double = ir.node("Add", [model.graph.inputs[0], model.graph.inputs[0]])
        double.outputs[0].name = "double"
        model.graph.insert_before(reshape, double)
        reshape.replace_input_with(0, double.outputs[0])
    elif spoiled == "other blocks":
        # The same sizes, but the leading dimensions are no longer kept apart.
        other = constant("other", np.array([1, -1, 4, 32]))
        model.graph.register_initializer(other)
        reshape.replace_input_with(1, other)
    else:
        reduce.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
    before, _ = ruled(model)
    assert op_types(model)[-3:] == [LINEAR, "MatMul", "Add"]
    if spoiled != "kept dimension":
        x = inputs(1, 3, 128)
        np.testing.assert_array_equal(run(model, x), run(before, x))


@pytest.mark.parametrize("switch", ["portable", "0"])
def test_a_session_gets_the_kernels_that_its_graph_calls(kernels, monkeypatch, tmp_path, switch):
    monkeypatch.setenv(build.SWITCH, switch)
    weight, x = Weight(256, 20, size=128), value("x", ["batch", "sequence", 256])
    ir.save(own_model(weight), tmp_path / "own.onnx")
    ir.save(model_of([(made := nbits(weight, x))[0]], x, made[1]), tmp_path / "plain.onnx")
    own, plain = ort.SessionOptions(), ort.SessionOptions()
    assert register_kernels(own, contents(tmp_path / "own.onnx").operators) == (
        "own plain C++ kernels" if switch == "portable" else ""
    )
    assert register_kernels(plain, contents(tmp_path / "plain.onnx").operators) == ""
    session = ort.InferenceSession(str(tmp_path / "own.onnx"), own, providers=["CPUExecutionProvider"])
    feed = inputs(1, 2, 256)
    same = distance(session.run(None, {"x": feed})[0], rounded(feed, 32) @ weight.plain.T) < 1e-6
    assert same == (switch == "portable")


def test_the_switch_turns_the_kernels_off(monkeypatch):
    monkeypatch.setenv(build.SWITCH, "0")
    assert build.library() is None
    assert build.reason() == "turned off by TOOLKIT_KERNELS=0"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(build.SWITCH, raising=False)
    build._found.cache_clear()
    yield tmp_path
    build._found.cache_clear()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.skipif(os.name != "posix", reason="no compiler is looked for elsewhere")
@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("exit 1", r"code 1: no message"),
        ('[ "$1" = --version ] && exit 0; echo "x:3: error: no such thing" >&2; exit 1', "error: no such thing"),
        ("exit 0", "wrote no library"),
        (
            'while [ "$1" != -o ] && [ $# -gt 0 ]; do shift; done; [ $# -gt 0 ] && echo junk > "$2"; true',
            "kernels-",
        ),
    ],
    ids=["fails at once", "fails to compile", "does nothing", "writes junk"],
)
def test_a_broken_compiler_is_a_reason_not_an_error(empty_cache, monkeypatch, compiler, said):
    monkeypatch.setenv("CXX", script(empty_cache / "broken", compiler))
    assert build.library() is None
    assert re.search(said, build.reason())


@pytest.mark.skipif(os.name != "posix", reason="no compiler is looked for elsewhere")
def test_no_compiler_is_a_reason_not_an_error(empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", str(empty_cache / "absent"))
    assert build.library() is None
    assert "absent" in build.reason()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(empty_cache))
    assert build.library() is None
    assert "none of c++, g++, clang++" in build.reason()


def test_builds_at_once_do_not_meet(kernels, empty_cache):
    code = "from runtimes._onnxruntime.kernels import build; print(build.library())"
    # The fixture has it as it ships: here it need not be fast, and without -O3 it is there in less than half the time.
    plain = " ".join(build._compiler(os.environ.get("CXX", "")))
    compiler = script(empty_cache / "unoptimised", f'exec {plain} "$@" -O0')
    environment = {**os.environ, build.SWITCH: "portable", "CXX": compiler, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=300)[0].strip() for process in started}
    assert len(answers) == 1
    path = Path(answers.pop())
    assert path.is_relative_to(empty_cache)
    assert sorted(path.parent.iterdir()) == [path]
    assert path.name == kernels.name
    weight, x = Weight(64, 20), inputs(1, 2, 64)
    assert distance(run(own_model(weight), x, path), rounded(x, 32) @ weight.plain.T) < 1e-6


def test_the_key_follows_source_and_compiler():
    key = build.library_key(b"int x;", "gcc 12")
    assert key == build.library_key(b"int x;", "gcc 12")
    assert len({key, build.library_key(b"int y;", "gcc 12"), build.library_key(b"int x;", "gcc 13")}) == 3
