"""Comparing graphs module by module: where they can be tapped, whose noise it is, what is said of it."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx_ir.passes.common import RemoveUnusedNodesPass
from scoped_graphs import WIDTH, array, divided, node, save, two_blocks

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.rules.token_rows import use_token_rows
from runtimes._onnxruntime.tapped import TappedGraph
from toolkit.cli import main
from toolkit.compare.modules import Modules
from toolkit.compare.result import read_comparison
from toolkit.compare.run import Asked, compare
from toolkit.compare.taps import expected_bytes, find_taps, in_groups
from toolkit.errors import UsageError


def taps_of(path):
    return find_taps(TappedGraph(path, rounded=True))


def by_name(comparison):
    return {module.module: module for module in comparison.modules}


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)], catch_exceptions=False)


def test_modules_of_a_graph_are_read_from_its_scopes(tmp_path):
    found = {module.path: module for module in Modules(onnx.load(two_blocks(tmp_path / "a.onnx"))).modules}
    assert found["layers.0.fc1"].tensor == "layers.0.fc1_out"
    assert found["layers.0.fc1"].entering == "layers.0.norm_out"
    assert found["layers.1"].tensor == "layers.1.out"
    assert [found[name].leaf for name in ("layers.0", "layers.0.fc1")] == [False, True]


def test_a_tensor_inside_a_fusion_is_not_tapped_and_every_fusion_stays(tmp_path):
    graph = TappedGraph(two_blocks(tmp_path / "a.onnx"), rounded=True)
    plain = graph.optimised()
    assert plain.operators[("com.microsoft", "BiasGelu")] == 2
    taps = find_taps(graph)
    assert "Gelu" in taps.skipped["layers.0.fc1"]
    assert "layers.0.fc1" not in {module.path for module in taps.modules}
    assert {"layers.0.norm", "layers.0.act", "layers.0.fc2"} <= {module.path for module in taps.modules}
    assert graph.optimised(taps.tensors).operators == plain.operators
    # The test can fail: a tap inside the fusion does break it.
    assert graph.optimised(["layers.0.fc1_out"]).operators != plain.operators


def test_a_tap_that_changes_the_graph_is_left_out(tmp_path):
    """`y` and the tensor before the Identity are one to ONNX Runtime, until both are asked for."""
    weights = {"w": array((WIDTH, WIDTH), 1)}
    nodes = [
        node("MatMul", ["x", "w"], ["first"], "first"),
        node("Relu", ["first"], ["second"], "second"),
        node("Relu", ["second"], ["y"], "third"),
    ]
    graph = TappedGraph(save(tmp_path / "a.onnx", nodes, weights), rounded=True)
    taps = find_taps(graph)
    assert graph.optimised(taps.tensors).operators == graph.optimised().operators


def test_equal_graphs_do_not_differ(tmp_path):
    left, right = two_blocks(tmp_path / "a.onnx"), two_blocks(tmp_path / "b.onnx")
    found = compare(str(left), str(right))
    assert found.first_bad is None
    assert len(found.modules) == 7
    assert set(found.skipped) == {"layers.0.fc1", "layers.1.fc1", "layers.1", "layers"}
    assert all(module.sqnr_db == math.inf and module.added is not None for module in found.modules)
    assert max(module.added for module in found.modules) < 1e-12


def test_the_module_that_adds_the_noise_is_the_guilty_one(tmp_path):
    def coarse(weights):
        weights["layers.0.w2"] = np.round(weights["layers.0.w2"] * 2) / 2

    left, right = two_blocks(tmp_path / "a.onnx"), two_blocks(tmp_path / "b.onnx", change=coarse)
    found = compare(str(left), str(right))
    assert found.first_bad == "layers.0.fc2"
    assert found.guilty[0] == "layers.0.fc2"
    modules = by_name(found)
    assert modules["layers.0.norm"].sqnr_db == math.inf
    # It spreads to what follows, which adds none of its own.
    assert modules["layers.1.fc2"].bad
    assert modules["layers.1.fc2"].added < 1e-12
    assert modules["layers.0.fc2"].added == pytest.approx(10 ** (-modules["layers.0.fc2"].sqnr_db / 10), rel=1e-3)


@pytest.mark.parametrize("turned", [False, True])
def test_tokens_as_rows_are_the_same_tensor(turned, tmp_path):
    """The runtime `ort-cpu` holds [batch, tokens, width] as [batch · tokens, width]."""

    def coarse(weights):
        weights["layers.0.w2"] = np.round(weights["layers.0.w2"] * 2) / 2

    def rows(path):
        model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path)))
        assert use_token_rows(model, Emitter(model))
        RemoveUnusedNodesPass()(model)
        ir.save(model, path)
        return path

    left, right = two_blocks(tmp_path / "a.onnx"), two_blocks(tmp_path / "b.onnx", change=coarse)
    found = compare(str(rows(left)), str(right)) if turned else compare(str(left), str(rows(right)))
    assert not any(module.failure for module in found.modules)
    assert found.guilty[0] == "layers.0.fc2"
    modules = by_name(found)
    assert modules["layers.0.norm"].sqnr_db > 120
    assert modules["layers.1.fc2"].added < 1e-12


def test_what_a_graph_divides_is_multiplied_again(tmp_path):
    divisor = np.linspace(0.5, 4, WIDTH).astype(np.float32)

    def smoothed(weights):
        for name in ("g", "b"):
            weights[f"layers.1.{name}"] = weights[f"layers.1.{name}"] / divisor
        weights["layers.1.w1"] = weights["layers.1.w1"] * divisor[:, None]

    left = two_blocks(tmp_path / "a.onnx")
    blind = compare(str(left), str(two_blocks(tmp_path / "b.onnx", change=smoothed)))
    assert blind.first_bad == "layers.1.norm"
    told = two_blocks(tmp_path / "c.onnx", change=smoothed, metadata=divided("in", "layers.1.fc1", divisor))
    found = compare(str(left), str(told))
    assert found.first_bad is None
    assert min(module.sqnr_db for module in found.modules) > 120
    assert max(module.added for module in found.modules) < 1e-12


def test_what_is_stored_for_a_reader_is_not_the_output(tmp_path):
    """A Linear that reads through Q/DQ, with a bias that is cast: its input is the tensor before, the only one."""
    one, zero = np.array(0.1, np.float32), np.array(0, np.int8)
    nodes = [
        node("Relu", ["x"], ["act_out"], "act"),
        node("QuantizeLinear", ["act_out", "s", "z"], ["stored"], ""),
        node("DequantizeLinear", ["stored", "s", "z"], ["read"], ""),
        node("Cast", ["b16"], ["b32"], "", to=1),
        node("MatMul", ["read", "w"], ["product"], "fc"),
        node("Add", ["product", "b32"], ["y"], "fc"),
    ]
    weights = {"s": one, "z": zero, "b16": array((WIDTH,), 2).astype(np.float16), "w": array((WIDTH, WIDTH), 1)}
    found = {module.path: module for module in Modules(onnx.load(save(tmp_path / "a.onnx", nodes, weights))).modules}
    assert found["act"].tensor == "act_out"
    assert found["fc"].entering == "act_out"


def test_graphs_without_scopes_align_by_tensor_names(tmp_path):
    def plain(path, scale):
        nodes = [node("MatMul", ["x", "w"], ["hidden"], ""), node("Tanh", ["hidden"], ["y"], "")]
        return save(path, nodes, {"w": array((WIDTH, WIDTH), 3) * np.float32(scale)})

    found = compare(str(plain(tmp_path / "a.onnx", 1)), str(plain(tmp_path / "b.onnx", 1.5)))
    assert [module.module for module in found.modules] == ["hidden", "y"]
    assert found.guilty == ("hidden",)


def test_names_of_the_older_exporter_are_paths(tmp_path):
    weights = {"w": array((WIDTH, WIDTH), 3)}
    made = node("MatMul", ["x", "w"], ["hidden"], "")
    made.name = "/encoder/layer.0/dense/MatMul"
    save(tmp_path / "a.onnx", [made, node("Tanh", ["hidden"], ["y"], "")], weights)
    taps = taps_of(tmp_path / "a.onnx")
    assert "encoder.layer.0.dense" in {module.path for module in taps.modules}


def test_several_tensors_that_leave_a_module_are_no_one_output(tmp_path):
    nodes = [
        node("Split", ["x"], ["a", "b"], "cut", axis=-1, num_outputs=2),
        node("Concat", ["b", "a"], ["y"], "join", axis=-1),
    ]
    taps = taps_of(save(tmp_path / "a.onnx", nodes, {}))
    assert "2 tensors leave it" in taps.skipped["cut"]


def test_another_shape_is_a_failure_with_its_reason(tmp_path):
    def flat(path, shape):
        nodes = [
            node("Reshape", ["x", "shape"], ["flat"], "flat"),
            node("Reshape", ["flat", "back"], ["y"], "back"),
        ]
        return save(path, nodes, {"shape": np.array(shape), "back": np.array([2, -1, WIDTH])})

    found = compare(str(flat(tmp_path / "a.onnx", [-1, WIDTH])), str(flat(tmp_path / "b.onnx", [1, -1, WIDTH])))
    flat_module = by_name(found)["flat"]
    assert "has shape [1, 32, 16], the reference has [32, 16]" in flat_module.failure
    assert flat_module.sqnr_db is None
    assert not flat_module.bad


def test_overflow_of_float16_is_marked(tmp_path):
    def graph(path, half):
        dtype = np.float16 if half else np.float32
        weights = {"w": np.full((WIDTH, WIDTH), 60.0, dtype)}
        nodes = [
            *([node("Cast", ["x"], ["x16"], "", to=10)] if half else []),
            node("MatMul", ["x16" if half else "x", "w"], ["big"], "big"),
            node("Mul", ["big", "big"], ["square"], "square"),
            *([node("Cast", ["square"], ["y"], "", to=1)] if half else [node("Identity", ["square"], ["y"], "")]),
        ]
        return save(path, nodes, weights)

    np.savez(tmp_path / "inputs.npz", x=np.ones((1, 4, WIDTH), np.float32))
    left, right = graph(tmp_path / "a.onnx", False), graph(tmp_path / "b.onnx", True)
    found = by_name(compare(str(left), str(right), Asked(inputs=tmp_path / "inputs.npz")))
    assert not found["big"].overflow
    assert found["square"].overflow
    assert found["square"].bad
    assert found["square"].reference_absmax == 960.0**2
    assert found["square"].candidate_absmax == math.inf


def test_padded_positions_do_not_count(tmp_path):
    """A graph that answers something else where nobody attends is no worse for it."""

    def graph(path, padding):
        nodes = [
            node("Cast", ["attention_mask"], ["kept"], "", to=1),
            node("Unsqueeze", ["kept", "axis"], ["column"], ""),
            node("Sub", ["one", "column"], ["away"], ""),
            node("Mul", ["away", "padding"], ["noise"], ""),
            node("Gather", ["table", "input_ids"], ["tokens"], "embed"),
            node("Add", ["tokens", "noise"], ["y"], "mix"),
        ]
        weights = {
            "axis": np.array([2]), "one": np.array(1, np.float32), "padding": np.array(padding, np.float32),
            "table": array((100, WIDTH), 5),
        }  # fmt: skip
        save(path, nodes, weights)
        model = onnx.load(path)
        del model.graph.input[:]
        for name in ("input_ids", "attention_mask"):
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, 7, ["batch", "tokens"]))
        onnx.save(model, path)
        return str(path)

    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    np.savez(tmp_path / "inputs.npz", input_ids=np.arange(8).reshape(2, 4), attention_mask=mask)
    left, right = graph(tmp_path / "a.onnx", 0), graph(tmp_path / "b.onnx", 7)
    assert by_name(compare(left, right, Asked(inputs=tmp_path / "inputs.npz")))["mix"].sqnr_db == math.inf
    np.savez(tmp_path / "inputs.npz", input_ids=np.arange(8).reshape(2, 4), attention_mask=np.eye(2, 4, dtype=int))
    other = compare(left, left, Asked(inputs=tmp_path / "inputs.npz"))
    assert other.first_bad is None


def test_taps_are_read_in_groups_that_fit_into_memory(tmp_path):
    taps = taps_of(two_blocks(tmp_path / "a.onnx"))
    names = list(taps.tensors)
    assert in_groups(taps, dict.fromkeys(names, 1 << 20)) == [names]
    groups = in_groups(taps, dict.fromkeys(names, 15 << 20))
    assert [name for group in groups for name in group] == names
    assert {len(group) for group in groups[:-1]} == {2}
    assert in_groups(taps, dict.fromkeys(names, 1 << 30)) == [[name] for name in names]


def test_bytes_are_expected_by_shape_or_as_the_largest_known(tmp_path):
    taps = taps_of(two_blocks(tmp_path / "a.onnx"))
    batch = {"x": np.zeros((4, 8, WIDTH), np.float32)}
    assert expected_bytes(taps, ["y", "layers.0.act_out"], [batch]) == {
        "y": 4 * 4 * 8 * WIDTH, "layers.0.act_out": 4 * 4 * 8 * WIDTH,
    }  # fmt: skip


def test_the_command_names_the_module_and_writes_the_comparison(tmp_path):
    def coarse(weights):
        weights["layers.1.w2"] = np.round(weights["layers.1.w2"])

    left, right = two_blocks(tmp_path / "a.onnx"), two_blocks(tmp_path / "b.onnx", change=coarse)
    done = run(left, right, "--output", tmp_path / "c.json")
    assert done.exit_code == 0
    assert "layers.1.fc2 (Add) is the first of" in done.stdout
    assert "--recipe exclude=layers.1.fc2" in done.stdout
    assert "FIRST BAD, adds most" in done.stdout
    written = read_comparison(tmp_path / "c.json")
    assert written == compare(str(left), str(right))
    assert sum(written.error.counts) == 2 * 16 * WIDTH
    shown = json.loads(run(left, right, "--json", "--module", "layers.1.*").stdout)
    assert {entry["module"].rpartition(".")[0] for entry in shown["modules"]} == {"layers.1"}
    assert run(left, right, "--fail").exit_code == 6
    assert run(left, left, "--fail").exit_code == 0
    assert run(left, right, "--fail", "--threshold", "-20").exit_code == 0


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        ("reference", "{a}", "does not say which PyTorch model"),
        ("{a}", "reference", "Give it first"),
        ("{a}", "{a}@quantize", "has no stage"),
        ("{a}", "{a}@quantise", "is no stage"),
        ("{a}", "{nothing}", "is not there"),
        ("{a}", "{folder}", "has no manifest.json"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(tmp_path, left, right, said):
    places = {"a": two_blocks(tmp_path / "a.onnx"), "nothing": tmp_path / "no", "folder": tmp_path}
    done = run(left.format(**places), right.format(**places))
    assert done.exit_code in {2, 4}
    assert said in done.stderr


def test_stages_are_of_a_line(tmp_path):
    graph = two_blocks(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="not a line with stages"):
        compare(str(graph), str(graph), Asked(stages=True))
