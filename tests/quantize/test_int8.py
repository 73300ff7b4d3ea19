"""Static and dynamic int8: which nodes are quantized, in which form, and how far the outputs move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from quantize_graphs import SPEC, Builder, by_type, graph_input, images, run, save_exported, sqnr, vision_model

from quantize import quantize
from quantize.nodes import module_path
from quantize.residuals import residual_sums, residuals_in_float
from quantize.schemes.int8 import SCHEME as STATIC
from quantize.schemes.int8_dynamic import SCHEME as DYNAMIC
from toolkit.errors import StageError, UsageError

LINEAR_TYPES = ("MatMul", "Gemm", "Conv")


def linears(model):
    return [node for node in model.graph if node.op_type in LINEAR_TYPES]


def array(value: ir.Value):
    return value.const_value.numpy()


@pytest.fixture
def static():
    model = vision_model()
    steps = STATIC.apply(model, SPEC, images(4), {})
    return model, steps


def test_every_linear_and_the_patch_conv_read_int8(static):
    model, steps = static
    assert len(linears(model)) == 8
    for node in linears(model):
        assert [value.producer().op_type for value in node.inputs[:2]] == ["DequantizeLinear"] * 2
    assert {step.what: step.count for step in steps if "smoothed" not in step.what} == {
        "int8 Linears": 7,
        "int8 patch convolutions": 1,
        "quantized activations": 6,
        f"{STATIC.config.calibration} calibration": 6,
        "residual sums kept out of int8": 2,
        "weights rounded by what they read": 7,
    }


def test_a_residual_sum_that_reads_int8_is_an_error(static):
    model, _ = static
    (final,) = [node for node in residual_sums(model.graph) if module_path(node) == "block"]
    assert residuals_in_float(model.graph).count == 2
    dequantized = next(
        node.outputs[0]
        for node in by_type(model, "DequantizeLinear")
        if node.inputs[0].producer() is not None and node.inputs[0].producer().op_type == "QuantizeLinear"
    )
    final.replace_input_with(1, dequantized)
    with pytest.raises(StageError, match=r"sum .* of module 'block' reads int8"):
        residuals_in_float(model.graph)


def test_weights_are_symmetric_per_output_channel_with_written_zero_points(static):
    model, _ = static
    expected = {"patch.weight": (0, 32), "classifier.weight": (0, 10), "block.fc1.weight": (1, 64)}
    for node in linears(model):
        dequantize = node.inputs[1].producer()
        weight, scale, zero = dequantize.inputs
        assert (weight.dtype, scale.dtype, zero.dtype) == (ir.DataType.INT8, ir.DataType.FLOAT, ir.DataType.INT8)
        assert not array(zero).any()
        assert array(zero).shape == array(scale).shape == (weight.shape[dequantize.attributes.get_int("axis")],)
        name = weight.name.removesuffix("_int8")
        if name in expected:
            assert (dequantize.attributes.get_int("axis"), array(scale).shape[0]) == expected[name]


def test_activations_are_symmetric_per_tensor_and_one_pair_serves_all_readers(static):
    model, _ = static
    quantizers = by_type(model, "QuantizeLinear")
    assert len(quantizers) == 6
    for node in quantizers:
        assert array(node.inputs[1]).shape == ()
        assert array(node.inputs[2]) == 0
        assert array(node.inputs[2]).dtype == np.int8
    readers = [use.node for use in by_type(model, "LayerNormalization")[0].outputs[0].uses()]
    assert [node.op_type for node in readers] == ["QuantizeLinear"]
    dequantized = next(iter(readers[0].outputs[0].uses())).node.outputs[0]
    assert len([use for use in dequantized.uses() if use.node.op_type == "MatMul"]) == 3


def test_nothing_else_is_quantized(static):
    model, _ = static
    for node in by_type(model, "DequantizeLinear"):
        assert {use.node.op_type for use in node.outputs[0].uses()} <= set(LINEAR_TYPES)
    for node in [*by_type(model, "FusedAttention"), *by_type(model, "LayerNormalization"), *by_type(model, "Add")]:
        assert all(value.producer() is None or value.producer().op_type != "DequantizeLinear" for value in node.inputs)


def test_new_nodes_keep_the_module_they_serve(static):
    model, _ = static
    scopes = {node.metadata_props["pkg.torch.onnx.name_scopes"] for node in by_type(model, "DequantizeLinear")}
    assert "['', 'block.attention.q_proj']" in scopes


@pytest.mark.parametrize("name", ["int8", "int8-dynamic"])
def test_the_written_graph_is_valid_runs_and_stays_near(tmp_path, name):
    exported = save_exported(vision_model(), tmp_path / "exported")
    made = quantize(exported, name, images(4), tmp_path / "out")
    onnx.checker.check_model(made.path, full_check=True)
    feed = dict(next(images(1, seed=9).batches()))
    assert sqnr(run(exported.path, feed)["logits"], run(made.path, feed)["logits"]) > 20
    assert made.path.with_name("model.onnx.data").stat().st_size < 0.5 * exported.path.stat().st_size + 60_000
    assert made.scheme == name
    assert made.sha256 != exported.sha256


def test_dynamic_quantizes_activations_as_uint8_once_a_tensor():
    model = vision_model()
    steps = DYNAMIC.apply(model, SPEC, None, {})
    measured = by_type(model, "DynamicQuantizeLinear")
    assert len(measured) == steps[2].count == 6
    for node in measured:
        (reader,) = {use.node for use in node.outputs[0].uses()}
        assert reader.op_type == "DequantizeLinear"
        assert list(reader.inputs) == list(node.outputs)


def test_excluded_modules_stay_fp32_and_the_log_says_so():
    model = vision_model()
    scheme = replace(STATIC, config=replace(STATIC.config, exclude=("*.fc?", "classifier")))
    steps = scheme.apply(model, SPEC, images(2), {})
    kept = [node for node in linears(model) if node.inputs[1].producer() is None]
    assert [node.inputs[1].name for node in kept] == ["block.fc1.weight", "block.fc2.weight", "classifier.weight"]
    assert (steps[-1].what, steps[-1].count) == ("kept in fp32: excluded", 3)
    assert "block.fc1, block.fc2, classifier" in steps[-1].reason


def test_linears_that_share_a_weight_share_its_integers():
    b = Builder()
    x = graph_input("x", ["batch", 32])
    weight = b.random("tied.weight", 32, 32)
    y = b.op("MatMul", b.op("Gelu", b.op("MatMul", x, weight)), weight)
    model = b.model([x], {"y": y})
    DYNAMIC.apply(model, SPEC, None, {})
    first, second = by_type(model, "MatMul")
    assert first.inputs[1] is second.inputs[1]
    assert "tied.weight" not in model.graph.initializers


def test_a_table_that_is_also_looked_up_keeps_its_fp32_form():
    b = Builder()
    ids = graph_input("ids", ["batch", 4], ir.DataType.INT64)
    table = b.random("embedding.weight", 32, 32)
    model = b.model([ids], {"y": b.op("MatMul", b.op("Gather", table, ids), table)})
    DYNAMIC.apply(model, SPEC, None, {})
    assert by_type(model, "Gather")[0].inputs[0].name == "embedding.weight"
    assert by_type(model, "MatMul")[0].inputs[1].producer().op_type == "DequantizeLinear"


def test_a_later_convolution_and_products_of_activations_are_left_alone():
    b = Builder()
    x = graph_input("x", ["batch", 3, 16, 16])
    first = b.op("Conv", x, b.random("first", 4, 3, 3, 3))
    second = b.op("Conv", first, b.random("second", 4, 4, 3, 3))
    model = b.model([x], {"y": b.op("MatMul", second, second)})
    steps = DYNAMIC.apply(model, SPEC, None, {})
    assert [step.count for step in steps[:2]] == [0, 1]
    assert by_type(model, "Conv")[1].inputs[1].name == "second"
    assert by_type(model, "MatMul")[0].inputs[0] is by_type(model, "MatMul")[0].inputs[1]


def test_nan_in_a_weight_names_the_module():
    model = vision_model()
    array(model.graph.initializers["block.fc2.weight"])[3, 3] = np.nan
    with pytest.raises(StageError, match=r"block\.fc2\.weight.*block\.fc2"):
        DYNAMIC.apply(model, SPEC, None, {})


def test_static_int8_without_calibration_is_a_usage_error(tmp_path):
    exported = save_exported(vision_model(), tmp_path)
    with pytest.raises(UsageError, match="no calibration"):
        quantize(exported, "int8", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
