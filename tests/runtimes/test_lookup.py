"""Embedding tables in int8: the rows that a runtime looks up, exactly, without the table in float."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from ort_graphs import written

from runtimes import portable_session
from runtimes._onnxruntime.lowering import lower_graph
from runtimes._onnxruntime.rules.lookup import look_up_integers
from runtimes.ort_cpu import RUNTIME as ORT_CPU
from toolkit.bundle.write import engine_mapping

ROWS, WIDTH = 300, 96
IDS = np.array([[0, 299, 7], [5, 5, 2]])


def table_model(size: int, *, zero: int = 0, dtype: str = "int8", head: bool = False) -> tuple[ir.Model, np.ndarray]:
    """A lookup in blocks of `size`, and with `head` a product with the same table; and the table in float32."""
    rng = np.random.default_rng(size)
    low, high = (0, 256) if dtype == "uint8" else (-127, 128)
    integers = rng.integers(low, high, (ROWS, WIDTH)).astype(dtype)
    scale = rng.uniform(0.001, 0.02, (ROWS, WIDTH // size)).astype(np.float32)
    zeros = np.full(scale.shape, zero, dtype)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["table"], axis=1, block_size=size),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
    ]
    outputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "sequence", WIDTH])]
    if head:
        nodes += [helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0])]
        nodes += [helper.make_node("MatMul", ["rows", "t"], ["y"])]
        outputs += [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", ROWS])]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    constants = [onnx.numpy_helper.from_array(*each) for each in ((integers, "q"), (scale, "s"), (zeros, "z"))]
    graph = helper.make_graph(nodes, "tiny", [ids], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    table = (integers.astype(np.float32) - zero) * scale.repeat(size, axis=1)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model)), table


@pytest.mark.parametrize("size", [96, 32, 16])
def test_only_the_rows_that_are_looked_up_become_float(size, tmp_path):
    model, table = table_model(size)
    graph = lower_graph(written(model, tmp_path), tmp_path / "lowered", "test", [look_up_integers])
    # None of these but Gather reads the table, and Gather answers rows.
    assert {node.op_type for node in ir.load(graph.path).graph} <= {"Gather", "Cast", "Reshape", "Unsqueeze", "Mul"}
    np.testing.assert_array_equal(portable_session(graph.path).run({"ids": IDS})["rows"], table[IDS])


def test_a_head_still_multiplies_with_the_table(tmp_path):
    model, table = table_model(32, head=True)
    graph = lower_graph(written(model, tmp_path), tmp_path / "lowered", "test", [look_up_integers])
    made = portable_session(graph.path).run({"ids": IDS})
    np.testing.assert_array_equal(made["rows"], table[IDS])
    np.testing.assert_allclose(made["y"], table[IDS] @ table.T, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("zero", "dtype"), [(3, "int8"), (128, "uint8")])
def test_what_is_not_symmetric_int8_is_left_alone(zero, dtype, tmp_path):
    model, table = table_model(32, zero=zero, dtype=dtype)
    graph = lower_graph(written(model, tmp_path), tmp_path / "lowered", "test", [look_up_integers])
    assert not graph.steps
    np.testing.assert_allclose(portable_session(graph.path).run({"ids": IDS})["rows"], table[IDS], rtol=1e-6)


def test_onnx_runtime_has_an_operator_for_it(tmp_path):
    model, table = table_model(32)
    engine = ORT_CPU.build(ORT_CPU.lower(written(model, tmp_path, "int8"), tmp_path / "lowered"))
    assert [node.op_type for node in ir.load(engine.graph.path).graph] == ["GatherBlockQuantized"]
    np.testing.assert_array_equal(portable_session(engine.graph.path).run({"ids": IDS})["rows"], table[IDS])


def test_openvino_holds_the_table_in_int8(tmp_path):
    openvino = pytest.importorskip("openvino")
    from runtimes.openvino import RUNTIME

    model, table = table_model(32)
    engine = RUNTIME.build(RUNTIME.lower(written(model, tmp_path, "int8"), tmp_path / "lowered"))
    folder = engine.graph.path.parent
    session = RUNTIME.session(folder, engine_mapping(engine))
    np.testing.assert_allclose(session.run({"ids": IDS})["rows"], table[IDS], rtol=1e-6)
    compiled = openvino.Core().compile_model(engine.graph.path, "CPU")
    held = [node.output(0) for node in compiled.get_runtime_model().get_ordered_ops()]
    tables = {
        tuple(each.get_shape()): each.get_element_type().get_type_name()
        for each in held
        if each.partial_shape.is_static and list(each.get_shape())[:1] == [ROWS]
    }
    assert tables == {(ROWS, WIDTH): "i8", (ROWS, WIDTH // 32): "f32"}
