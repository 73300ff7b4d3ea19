"""The preflight names what TensorRT would refuse or misread, with node and module, before anything is compiled."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir
import pytest

from runtimes._tensorrt.preflight import check, objections
from toolkit.errors import UnsupportedError

ATTENTION = "float[2, 4, {queries}, 8] q, float[2, 4, {keys}, 8] k, float[2, 4, {keys}, {size}] v"


def graph(text: str, opset: int = 23) -> ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]> g {text}')
    parsed = ir.from_proto(model)
    del parsed.opset_imports["com.microsoft"]
    for node in parsed.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'encoder', 'encoder.layer.3']"
    return parsed


def attention(
    call: str, more: str = "", *, queries: str = "5", keys: str = "5", size: int = 8, before: str = ""
) -> ir.Model:
    inputs = ATTENTION.format(queries=queries, keys=keys, size=size) + more
    return graph(f"({inputs}) => (float[2, 4, S, {size}] y) {{ {before} y = {call} }}")


GOOD = {
    "plain": attention("Attention(q, k, v)"),
    "bool mask": attention("Attention(q, k, v, m)", ", bool[5, 5] m"),
    "float mask": attention("Attention(q, k, v, m)", ", float[5, 5] m"),
    "causal": attention("Attention <is_causal = 1> (q, k, v)"),
    "causal, dynamic": attention("Attention <is_causal = 1> (q, k, v)", queries="S", keys="S"),
    "int8": graph(
        "(float[2, 4] x) => (float[2, 3] y) <float s = {0.1}, int8 z = {0}, int8[4, 3] w = {0,1,2,3,4,5,6,7,8,9,1,2},"
        " float[3] t = {1,1,1}, int8[3] u = {0,0,0}>"
        "{ a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)"
        "  c = DequantizeLinear <axis = 1> (w, t, u) y = MatMul(b, c) }"
    ),
}

BAD = {
    "com.microsoft": (graph("(float[2] x) => (float[2] y) { y = com.microsoft.FastGelu(x) }"), "only standard"),
    "integer operator": (
        graph("(int8[2, 2] x) => (int32[2, 2] y) { y = MatMulInteger(x, x) }"),
        "integer operators do not parse",
    ),
    "mask and is_causal": (
        attention("Attention <is_causal = 1> (q, k, v, m)", ", bool[5, 5] m"),
        "a mask together with is_causal",
    ),
    "causal, more keys": (attention("Attention <is_causal = 1> (q, k, v)", keys="7"), "upper-left"),
    "causal, unknown keys": (attention("Attention <is_causal = 1> (q, k, v)", queries="A", keys="B"), "upper-left"),
    "softcap": (attention("Attention <softcap = 2.0> (q, k, v)"), "softcap is refused"),
    "mask of another dtype": (attention("Attention(q, k, v, m)", ", float16[5, 5] m"), "the mask is FLOAT16"),
    "value size": (attention("Attention(q, k, v)", size=16), "head size 16 of the values differs from 8"),
    "queries are keys": (attention("Attention(q, q, v)"), "one tensor"),
    "queries are keys behind a view": (attention("Attention(q, r, v)", before="r = Identity(q)"), "one tensor"),
    "past keys": (
        attention("Attention(q, k, v, , p, p)", ", float[2, 4, 3, 8] p"),
        "past and present keys",
    ),
    "no zero point": (
        graph("(float[2] x) => (uint8[2] y) <float s = {0.1}> { y = QuantizeLinear(x, s) }"),
        "no zero point",
    ),
    "uint8": (
        graph("(float[2] x) => (uint8[2] y) <float s = {0.1}, uint8 z = {0}> { y = QuantizeLinear(x, s, z) }"),
        "uint8 is read as int8",
    ),
    "zero point": (
        graph("(float[2] x) => (int8[2] y) <float s = {0.1}, int8 z = {3}> { y = QuantizeLinear(x, s, z) }"),
        "the zero point is not 0",
    ),
    "scale's dtype": (
        graph("(float16[2] x) => (int8[2] y) <float s = {0.1}, int8 z = {0}> { y = QuantizeLinear(x, s, z) }"),
        "the scale is FLOAT, the tensor beside it FLOAT16",
    ),
    "int32 bias": (
        graph("(float[2] x) => (float[2] y) <int32[2] b = {1, 2}, float s = {0.1}>"
              "{ c = DequantizeLinear(b, s) y = Add(x, c) }"),
        "INT32 is not dequantized",
    ),
    "scales along inputs": (
        graph("(float[2, 2] x) => (float[2, 2] y) <int8[2, 2] w = {1, 2, 3, 4}, float[2] s = {0.1, 0.2}>"
              "{ d = DequantizeLinear <axis = 0> (w, s) y = MatMul(x, d) }"),
        "the output channels are axis 1",
    ),
    "opset": (graph("(float[2] x) => (float[2] y) { y = Relu(x) }", opset=6), "opset 6; the parser takes 7 to 27"),
    "dtype": (graph("(double[2] x) => (double[2] y) { y = Relu(x) }"), "DOUBLE is not a type of TensorRT's"),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_what_parses_passes(case: str) -> None:
    assert list(objections(GOOD[case])) == []
    check(GOOD[case])


@pytest.mark.parametrize("case", BAD, ids=str)
def test_traps_are_named(case: str) -> None:
    model, expected = BAD[case]
    with pytest.raises(UnsupportedError, match=expected) as caught:
        check(model)
    assert caught.value.hint


def test_the_message_names_node_and_module() -> None:
    model = attention("Attention <softcap = 2.0> (q, k, v)")
    model.graph[0].name = "node_7"
    (said,) = objections(model)
    assert said == "Attention 'node_7' of encoder.layer.3: softcap is refused"


def test_functions_must_be_gone() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 23, "local": 1]> g (float[2] x) => (float[2] y) { y = local.twice(x) }'
        ' <opset_import: ["": 23], domain: "local"> twice (a) => (b) { b = Add(a, a) }'
    )
    said = list(objections(ir.from_proto(onnx.parser.parse_model(text))))
    assert any("function local::twice" in line for line in said)


def test_many_objections_are_cut_short() -> None:
    lines = " ".join(f"y{i} = com.microsoft.FastGelu(x)" for i in range(8))
    outputs = ", ".join(f"float[2] y{i}" for i in range(8))
    with pytest.raises(UnsupportedError, match="and 3 more"):
        check(graph(f"(float[2] x) => ({outputs}) {{ {lines} }}"))
