"""What `inspect_graph` says of small graphs made for it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from tiny_bundles import image_bundle

from toolkit.errors import UsageError
from toolkit.inspection import inspect_graph
from toolkit.types import TensorSpec

QUANTIZED = """
<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1, "toolkit" : 1]>
quantized (float[batch, 4] x, float[batch, 2, seq, 8] q) => (float[batch, 4] y, float[batch, 2, seq, 8] z)
<float s = {0.1}, int8[4] w1 = {1, 2, 3, 4}, int8 zero = {0}, float[4] w2 = {1.0, 2.0, 3.0, 4.0}>
{
  a = QuantizeLinear(x, s, zero)
  b = DequantizeLinear(a, s, zero)
  c = DequantizeLinear(w1, s, zero)
  d = MatMul(b, c)
  e = Transpose(c)
  f = MatMul(x, e)
  g = Transpose(w2)
  h = MatMul(x, g)
  i = MatMul(d, h)
  j = com.microsoft.MatMulIntegerToFloat(a, w1, s, s)
  y = Sum(d, f, h, i, j)
  k = Attention(q, q, q)
  l = com.microsoft.MultiHeadAttention <num_heads = 2> (q, q, q)
  z = toolkit.FusedAttention(k, l, q)
}
<domain: "toolkit", opset_import: ["" : 23]>
FusedAttention (q, k, v) => (out)
{
  a = Add(q, k)
  out = Add(a, v)
}
"""


@pytest.fixture
def quantized(tmp_path):
    path = tmp_path / "quantized.onnx"
    onnx.save(parser.parse_model(QUANTIZED), path)
    return inspect_graph(path)


def test_quantized_linears_are_counted_by_form(quantized):
    # `i` multiplies two activations, so it is no Linear.
    assert quantized.linears == 4
    assert quantized.quantized == {
        "MatMul between Q/DQ": 1,
        "MatMul weight-only": 1,
        "com.microsoft::MatMulIntegerToFloat": 1,
    }


def test_fused_attention_is_counted_in_every_dialect(quantized):
    assert quantized.attention == {
        "ai.onnx::Attention": 1,
        "com.microsoft::MultiHeadAttention": 1,
        "toolkit::FusedAttention": 1,
    }


def test_function_bodies_are_listed_and_not_counted(quantized):
    assert quantized.functions == {"toolkit::FusedAttention": 2}
    assert "Add" not in quantized.operators["ai.onnx"]
    assert quantized.operators["ai.onnx"]["MatMul"] == 4
    assert quantized.opsets == {"ai.onnx": 23, "com.microsoft": 1, "toolkit": 1}


def test_tensors_and_weights(quantized):
    assert quantized.inputs == (
        TensorSpec("x", "float32", ("batch", 4)),
        TensorSpec("q", "float32", ("batch", 2, "seq", 8)),
    )
    assert quantized.weights == {"float32": 20, "int8": 5}
    assert quantized.data_files == ()


def test_low_bit_weights_count_their_packed_bytes(tmp_path):
    values = np.arange(-8, 8, dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["y"])],
        "low",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16])],
        [
            helper.make_tensor("w", TensorProto.INT4, [16], values),
            numpy_helper.from_array(np.float32(1), "s"),
        ],
    )
    path = tmp_path / "low.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    assert inspect_graph(path).weights == {"int4": 8, "float32": 4}


def test_subgraphs_are_counted(tmp_path):
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    branching (bool c, float[2] x) => (float[2] y) {
      y = If (c) <then_branch = one () => (float[2] a) { a = Neg(x) },
                  else_branch = two () => (float[2] b) { b = Neg(x) }>
    }
    """
    path = tmp_path / "branching.onnx"
    onnx.save(parser.parse_model(text), path)
    assert inspect_graph(path).operators == {"ai.onnx": {"Neg": 2, "If": 1}}


def test_weights_beside_the_graph_may_be_complete_truncated_or_missing(tmp_path):
    bundle = image_bundle(tmp_path / "bundle")
    data = bundle / "model.onnx.data"
    size = data.stat().st_size

    def found():
        (file,) = inspect_graph(bundle / "model.onnx").data_files
        return file.name, file.bytes, file.state

    assert found() == ("model.onnx.data", size, "complete")
    content = data.read_bytes()
    data.unlink()
    assert found() == ("model.onnx.data", 0, "missing")
    data.write_bytes(content[: size // 2])
    assert found() == ("model.onnx.data", size // 2, "truncated")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_truncated_graph_is_refused(tmp_path, share):
    whole = (image_bundle(tmp_path / "bundle") / "model.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UsageError, match=r"cut\.onnx"):
        inspect_graph(path)


@pytest.mark.parametrize("content", [b"\x00" * 64, b"hello, world\n", b'{"a": 1}', bytes(range(256))])
def test_what_is_no_graph_is_refused(tmp_path, content):
    path = tmp_path / "notes.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"notes\.onnx"):
        inspect_graph(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nowhere.onnx", tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            inspect_graph(path)


def test_a_graph_that_breaks_the_rules_says_which(tmp_path):
    twice = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "twice.onnx"
    onnx.save(helper.make_model(twice), path)
    with pytest.raises(UsageError, match=r"not a valid ONNX graph.*'y'"):
        inspect_graph(path)
