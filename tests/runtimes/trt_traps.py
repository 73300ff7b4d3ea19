"""The smallest graph for each trap of TensorRT's parser, what the preflight says of it, and what the builder does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
from trt_trial import Trial

ATTENTION = "{t}[2, 4, {queries}, 32] q, {t}[2, 4, {keys}, 32] k, {t}[2, 4, {keys}, {size}] v"


def graph(text: str, opset: int = 23, *functions: str) -> ir.Model:
    """Readable ONNX text as a model whose nodes came from the module `encoder.layer.3`."""
    imports = f'"": {opset}, "com.microsoft": 1, "local": 1'
    bodies = "".join(f' <opset_import: ["": {opset}], domain: "local"> {body}' for body in functions)
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> g {text}{bodies}")
    # Values are typed, as those of an export are; ONNX cannot infer the types of some functions' calls here.
    parsed = ir.from_proto(proto if functions else onnx.shape_inference.infer_shapes(proto))
    used = {node.domain for node in parsed.graph}
    for domain in {"com.microsoft", "local"} - used:
        del parsed.opset_imports[domain]
    for node in parsed.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'encoder', 'encoder.layer.3']"
    return parsed


def attention(
    call: str, more: str = "", *, queries: str = "5", keys: str = "5", size: int = 32, t: str = "float16",
    before: str = "", outputs: str = "", opset: int = 23,
) -> ir.Model:  # fmt: skip
    inputs = ATTENTION.format(t=t, queries=queries, keys=keys, size=size) + more
    return graph(f"({inputs}) => ({t}[2, 4, {queries}, {size}] y{outputs}) {{ {before} {call} }}", opset)


def _numbers(count: int, low: int = -127, high: int = 128) -> str:
    return ", ".join(map(str, np.random.default_rng(0).integers(low, high, count)))


def _many(number: str, count: int = 32) -> str:
    return ", ".join([number] * count)


CONSTANTS = (
    f"float s = {{0.1}}, int8 z = {{0}}, int8[32, 32] w = {{{_numbers(1024)}}}, "
    f"float[32] t = {{{_many('0.1')}}}, int8[32] u = {{{_many('0')}}}"
)
QUANTIZED = "a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)"
WEIGHT = "c = DequantizeLinear <axis = 1> (w, t, u)"


def product(body: str, more: str = "", t: str = "float") -> ir.Model:
    """[16, 32] · [32, 32], both sides quantized as `body` says."""
    extra = f", {more}" if more else ""
    return graph(f"({t}[16, 32] x) => ({t}[16, 32] y) <{CONSTANTS}{extra}> {{ {body} y = MatMul(b, c) }}")


def weight_only(
    dtype: ir.DataType, block: int, *, zero: int = 0, scales: ir.DataType = ir.DataType.FLOAT16
) -> ir.Model:
    """fp16 [16, 256] · dequantized [256, 64]; scales in blocks along K, or one a channel where `block` is 0."""
    random = np.random.default_rng(0)
    shape = (256 // block, 64) if block else (64,)
    integer = dtype in (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8)
    codes = random.integers(0, 8, (256, 64)).astype(dtype.numpy())
    values = [_constant("w", codes, dtype), _constant("s", np.full(shape, 0.1), scales)]
    if integer:
        values.append(_constant("z", np.full(shape, zero), dtype))
    attributes = {"axis": 0, "block_size": block} if block else {"axis": 1}
    nodes = [ir.node("DequantizeLinear", values, attributes, name="read")]
    if scales != ir.DataType.FLOAT16:
        nodes[0].outputs[0].type = ir.TensorType(scales)
        nodes.append(ir.node("Cast", nodes[0].outputs, {"to": int(ir.DataType.FLOAT16)}, name="cast"))
    x, y = (_half(name, size) for name, size in (("x", 256), ("y", 64)))
    nodes.append(ir.node("MatMul", [x, nodes[-1].outputs[0]], outputs=[y], name="product"))
    made = ir.Graph([x], [y], nodes=nodes, initializers=values, opset_imports={"": 23}, name="g")
    return ir.Model(made, ir_version=11)


def _half(name: str, size: int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape((16, size)))


def _constant(name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
    return ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))


def function(call: str, body: str, inputs: str = "float[2, 8] x", y: str = "float[2, 8] y") -> ir.Model:
    return graph(f"({inputs}) => ({y}) {{ {call} }}", 23, body)


def bf16() -> ir.Model:
    return graph("(bfloat16[2, 8] x) => (bfloat16[2, 8] y) { y = Relu(x) }")


GOOD: dict[str, ir.Model] = {
    "plain": attention("y = Attention(q, k, v)"),
    "fp32 attention": attention("y = Attention(q, k, v)", t="float"),
    "bool mask": attention("y = Attention(q, k, v, m)", ", bool[5, 5] m"),
    "float mask": attention("y = Attention(q, k, v, m)", ", float16[5, 5] m"),
    "mask for all keys": attention("y = Attention(q, k, v, m)", ", bool[2, 1, 5, 1] m"),
    "causal": attention("y = Attention <is_causal = 1> (q, k, v)"),
    "causal, dynamic": attention("y = Attention <is_causal = 1> (q, k, v)", queries="S", keys="S"),
    "keys are values": attention("y = Attention(q, k, k)"),
    "rank 3, causal, grouped": graph(
        "(float16[2, 5, 128] q, float16[2, 5, 64] k, float16[2, 5, 64] v) => (float16[2, 5, 128] y)"
        " { y = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v) }"
    ),
    "int8": product(QUANTIZED + WEIGHT),
    "int8, constants as nodes": product(
        "z8 = Constant <value = int8 {0}> () a = QuantizeLinear(x, s, z8) b = DequantizeLinear(a, s, z8)" + WEIGHT
    ),
    "int8 by output_dtype": product(
        "a = QuantizeLinear <output_dtype = 3> (x, s) b = DequantizeLinear(a, s) c = DequantizeLinear <axis = 1> (w, t)"
    ),
    "fp32 scale of an fp16 activation": graph(
        f"(float16[16, 32] x) => (float[16, 32] y) <{CONSTANTS}> {{ {QUANTIZED} {WEIGHT} y = MatMul(b, c) }}"
    ),
    "int4 in blocks": weight_only(ir.DataType.INT4, 32),
    "int8 a channel": weight_only(ir.DataType.INT8, 0),
    "fp8 weights": weight_only(ir.DataType.FLOAT8E4M3FN, 0),
    "fp4 weights@sm120": weight_only(ir.DataType.FLOAT4E2M1, 16),
    "bf16@sm80": bf16(),
    "bytes in and out": graph(
        "(uint8[2, 8] x) => (uint8[2, 8] y) { a = Cast <to = 1> (x) b = Relu(a) y = Cast <to = 2> (b) }"
    ),
    "function": function("y = local.twice(x)", "twice (a) => (b) { b = Add(a, a) }"),
    "static cache": graph(
        "(float16[2, 4, 16, 32] p, float16[2, 4, 1, 32] n, int64[2] i) => (float16[2, 4, 16, 32] y)"
        " { y = TensorScatter <axis = 2, mode = \"linear\"> (p, n, i) }",
        24,
    ),
}  # fmt: skip
"""What passes without a word and builds. (fp4 alone: a product with it is dequantized apart.)"""


def refused(trial: Trial) -> bool:
    return trial.code == 1


def crashes(trial: Trial) -> bool:
    return trial.code < 0


def builds(trial: Trial) -> bool:
    return trial.code == 0 and bool(trial.engine)


def says(words: str) -> Callable[[Trial], bool]:
    """It builds, and drops this remark."""
    return lambda trial: builds(trial) and words in trial.log


def stays_half(trial: Trial) -> bool:
    return builds(trial) and trial.fused_attentions == 1 and trial.int8_gemms == 0


def no_int8_gemm(trial: Trial) -> bool:
    return builds(trial) and trial.int8_gemms == 0


def dequantized_apart(trial: Trial) -> bool:
    return builds(trial) and [kind for kind, _ in trial.kernels] == ["kgen", "gemm"]


def as_attention(trial: Trial) -> bool:
    return builds(trial) and trial.fused_attentions == 1


@dataclass(frozen=True)
class Trap:
    """A graph, words of the preflight's problem and of its fix, and the proof that the builder falls into it."""

    model: ir.Model
    problem: str
    fix: str
    proof: Callable[[Trial], bool] = refused
    fatal: bool = True
    architectures: tuple[str, ...] = field(default=())


TRAPS: dict[str, Trap] = {
    "mask and is_causal": Trap(
        attention("y = Attention <is_causal = 1> (q, k, v, m)", ", bool[5, 5] m"),
        "a mask together with is_causal", "add causality to the mask",
    ),
    "fp32 mask on fp16": Trap(
        attention("y = Attention(q, k, v, m)", ", float[5, 5] m"), "the mask is FLOAT;", "cast the mask to FLOAT16"
    ),
    "int64 mask": Trap(
        attention("y = Attention(q, k, v, m)", ", int64[5, 5] m"), "the mask is INT64;", "cast the mask to FLOAT16"
    ),
    "short mask": Trap(
        attention("y = Attention(q, k, v, m)", ", bool[5, 3] m", opset=24), "covers 3 of 5 keys", "pad the mask"
    ),
    "causal, more keys": Trap(
        attention("y = Attention <is_causal = 1> (q, k, v)", keys="7"), "upper-left", "give a mask", builds
    ),
    "causal, unknown keys": Trap(
        attention("y = Attention <is_causal = 1> (q, k, v)", queries="A", keys="B"), "upper-left", "a mask", builds
    ),
    "nonpad_kv_seqlen": Trap(
        attention("y = Attention(q, k, v, , , , n)", ", int64[2] n", opset=24),
        "nonpad_kv_seqlen is ignored", "give a mask", says("Unused Input: n"),
    ),
    "softcap": Trap(attention("y = Attention <softcap = 2.0> (q, k, v)"), "softcap is refused", "MatMul and Softmax"),
    "softmax_precision": Trap(
        attention("y = Attention <softmax_precision = 1> (q, k, v)"), "softmax_precision", "drop the attribute"
    ),
    "value size": Trap(
        attention("y = Attention(q, k, v)", size=16), "head size 16 of the values differs from 32", "MatMul and Softmax"
    ),
    "queries are keys": Trap(attention("y = Attention(q, q, v)"), "one tensor", "tell them apart", crashes),
    "queries are keys behind a view": Trap(
        attention("y = Attention(q, r, v)", before="r = Identity(q)"), "one tensor", "tell them apart", crashes
    ),
    "queries are keys, an inner tensor": Trap(
        attention("y = Attention(r, r, v)", before="r = Relu(q)"), "one tensor", "tell them apart", crashes
    ),
    "past keys": Trap(
        attention(
            "y, pk, pv = Attention(q, k, v, , p, p)", ", float16[2, 4, 3, 32] p",
            outputs=", float16[2, 4, 8, 32] pk, float16[2, 4, 8, 32] pv",
        ),
        "past and present keys", "Concat",
    ),
    "present keys": Trap(
        attention(
            "y, pk, pv = Attention(q, k, v)", outputs=", float16[2, 4, 5, 32] pk, float16[2, 4, 5, 32] pv"
        ),
        "past and present keys", "Concat",
    ),
    "Q/DQ around Attention": Trap(
        attention(
            "y = Attention(b, d, f)",
            before="s0 = Constant <value = float {0.1}> () s = Cast <to = 10> (s0) z = Constant <value = int8 {0}> ()"
            " a = QuantizeLinear(q, s, z) b = DequantizeLinear(a, s, z) c = QuantizeLinear(k, s, z)"
            " d = DequantizeLinear(c, s, z) e = QuantizeLinear(v, s, z) f = DequantizeLinear(e, s, z)",
        ),
        "Q/DQ around an Attention", "MatMul and Softmax", stays_half, fatal=False,
    ),
    "circular cache": Trap(
        graph(
            "(float16[2, 4, 16, 32] p, float16[2, 4, 1, 32] n, int64[2] i) => (float16[2, 4, 16, 32] y)"
            " { y = TensorScatter <axis = 2, mode = \"circular\"> (p, n, i) }", 24,
        ),
        "only the mode linear", "does not wrap around",
    ),
    "no zero point": Trap(
        graph("(float[2] x) => (uint8[2] y) <float s = {0.1}> { y = QuantizeLinear(x, s) }"),
        "no zero point: ONNX reads that as uint8", "an int8 zero point", builds,
    ),
    "uint8, zero point 0": Trap(
        product("a = QuantizeLinear(x, s, n) b = DequantizeLinear(a, s, n)" + WEIGHT, "uint8 n = {0}"),
        "uint8 is read as int8", "quantize to int8", says("Defaulting to INT8"),
    ),
    "uint8, zero point 128": Trap(
        product("a = QuantizeLinear(x, s, n) b = DequantizeLinear(a, s, n)" + WEIGHT, "uint8 n = {128}"),
        "uint8 is read as int8", "quantize to int8",
    ),
    "uint8 weight": Trap(
        product(
            QUANTIZED + "c = DequantizeLinear(m, s, n)",
            f"uint8[32, 32] m = {{{_numbers(1024, 0, 256)}}}, uint8 n = {{128}}",
        ),
        "uint8 is read as int8", "quantize to int8",
    ),
    "uint8 without a zero point": Trap(
        graph("(uint8[2, 8] x) => (float[2, 8] y) <float s = {0.1}> { y = DequantizeLinear(x, s) }"),
        "UINT8 is not dequantized", "quantize to int8",
    ),
    "zero point": Trap(
        product("a = QuantizeLinear(x, s, n) b = DequantizeLinear(a, s, n)" + WEIGHT, "int8 n = {3}"),
        "the zero point is not 0", "symmetrically",
    ),
    "computed zero point": Trap(
        product("n = Mul(z, z) a = QuantizeLinear(x, s, n) b = DequantizeLinear(a, s, n)" + WEIGHT),
        "the zero point is computed", "fold it",
    ),
    "dtypes of a product": Trap(
        graph(
            f"(float16[16, 32] x) => (float16[16, 32] y) <{CONSTANTS}> {{ {WEIGHT} y = MatMul(x, c) }}"
        ),
        "the scale is FLOAT, the tensor beside it FLOAT16", "give the scale as FLOAT16",
    ),
    "int32 bias": Trap(
        product(
            QUANTIZED + WEIGHT + "d = DequantizeLinear(e, s) f = Add(d, d)", f"int32[32] e = {{{_numbers(32)}}}"
        ),
        "INT32 is not dequantized", "fold the bias",
    ),
    "scales along inputs": Trap(
        product(QUANTIZED + "c = DequantizeLinear <axis = 0> (w, t, u)"),
        "the output channels are axis 1", "one scale an output channel", no_int8_gemm, fatal=False,
    ),
    **{
        name: Trap(graph(text), "integer operators do not parse", "QuantizeLinear and DequantizeLinear")
        for name, text in {
            "DynamicQuantizeLinear": "(float[4] x) => (float[4] y)"
            " { q, s, z = DynamicQuantizeLinear(x) y = Cast <to = 1> (q) }",
            "MatMulInteger": "(int8[2, 2] x) => (int32[2, 2] y) { y = MatMulInteger(x, x) }",
            "ConvInteger": "(int8[1, 1, 8, 8] x) => (int32[1, 1, 7, 7] y) <int8[1, 1, 2, 2] w = {1, 2, 3, 4}>"
            " { y = ConvInteger(x, w) }",
            "QLinearMatMul": "(int8[2, 2] x) => (int8[2, 2] y) <float s = {0.1}, int8 z = {0}>"
            " { y = QLinearMatMul(x, s, z, x, s, z, s, z) }",
            "QLinearConv": "(int8[1, 1, 8, 8] x) => (int8[1, 1, 7, 7] y) <int8[1, 1, 2, 2] w = {1, 2, 3, 4},"
            " float s = {0.1}, int8 z = {0}> { y = QLinearConv(x, s, z, w, s, z, s, z) }",
        }.items()
    },
    "asymmetric int4": Trap(weight_only(ir.DataType.INT4, 32, zero=3), "the zero point is not 0", "symmetrically"),
    "uint4": Trap(weight_only(ir.DataType.UINT4, 32, zero=0), "UINT4 is not a type", "int4 weights"),
    "fp8 of another kind": Trap(weight_only(ir.DataType.FLOAT8E5M2, 0), "FLOAT8E5M2 is not a type", "type that"),
    "int4 a channel": Trap(
        weight_only(ir.DataType.INT4, 0), "int4 weights not in blocks", "take blocks", dequantized_apart, fatal=False
    ),
    "int8 in blocks": Trap(
        weight_only(ir.DataType.INT8, 32), "int8 weights in blocks", "one scale a channel", dequantized_apart,
        fatal=False,
    ),
    "a Cast behind int4": Trap(
        weight_only(ir.DataType.INT4, 32, scales=ir.DataType.FLOAT), "a Cast keeps a weight", "the product's dtype",
        dequantized_apart, fatal=False,
    ),
    "int4@sm75": Trap(
        weight_only(ir.DataType.INT4, 32), "INT4 needs SM80", "--arch sm80", architectures=("sm75", "sm80")
    ),
    "bf16@sm75": Trap(bf16(), "BFLOAT16 needs SM80", "--arch sm80", architectures=("sm75",)),
    "fp8@sm86": Trap(
        weight_only(ir.DataType.FLOAT8E4M3FN, 0), "FLOAT8E4M3FN needs SM89", "--arch sm89", architectures=("sm86",)
    ),
    "fp4@sm89": Trap(
        weight_only(ir.DataType.FLOAT4E2M1, 16), "FLOAT4E2M1 needs SM120", "--arch sm120", architectures=("sm89",)
    ),
    "function without an optional input": Trap(
        function("y = local.clip(x, , x)", "clip (a, low, high) => (b) { b = Max(a, high) }"),
        "omits an optional input", "inline",
    ),
    "function without the last input": Trap(
        function("y = local.clip(x)", "clip (a, low) => (b) { b = Clip(a, low) }"), "omits an optional", "inline"
    ),
    "function without the last output": Trap(
        function("y = local.two(x)", "two (a) => (b, c) { b = Relu(a) c = Neg(a) }"), "leaves out an output", "inline"
    ),
    "function called Attention": Trap(
        function(
            "y = local.Attention(x, k, v)", "Attention (a, b, c) => (d) { d = Neg(a) }",
            "float16[2, 4, 5, 32] x, float16[2, 4, 5, 32] k, float16[2, 4, 5, 32] v", "float16[2, 4, 5, 32] y",
        ),
        "read as ONNX's Attention", "rename it", as_attention,
    ),
    "function called Gelu": Trap(
        function("y = local.Gelu(x)", "Gelu (a) => (b) { b = Neg(a) }"), "read as ONNX's Gelu", "rename it",
        lambda trial: builds(trial) and "Erf" in trial.log,
    ),
    "operator called Relu": Trap(
        graph("(float[2] x) => (float[2] y) { y = com.microsoft.Relu(x) }"),
        "the domain is ignored", "standard operators", builds,
    ),
    **{
        name: Trap(graph(text), "only standard operators parse", "standard operators")
        for name, text in {
            "FastGelu": "(float[2] x) => (float[2] y) { y = com.microsoft.FastGelu(x) }",
            "BiasGelu": "(float[2, 8] x, float[8] b) => (float[2, 8] y) { y = com.microsoft.BiasGelu(x, b) }",
            "FusedMatMul": "(float[8, 8] x) => (float[8, 8] y) { y = com.microsoft.FusedMatMul(x, x) }",
            "SkipLayerNormalization": "(float[2, 2, 8] x, float[8] g) => (float[2, 2, 8] y)"
            " { y = com.microsoft.SkipLayerNormalization(x, x, g) }",
        }.items()
    },
    **{
        name: Trap(graph(text), "only standard operators are proven", "standard operators")
        for name, text in {
            "MatMulNBits": f"(float[2, 32] x) => (float[2, 1] y) <uint8[1, 1, 16] w = {{{_many('0', 16)}}},"
            " float[1] s = {1.0}>"
            " { y = com.microsoft.MatMulNBits <K = 32, N = 1, bits = 4, block_size = 32> (x, w, s) }",
            "GroupQueryAttention": "(float16[1, 4, 64] q, int32[1] s, int32 t) => (float16[1, 4, 64] y)"
            " { y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2> (q, q, q, , , s, t) }",
        }.items()
    },
    "no such operator": Trap(
        graph("(int64[4] x) => (int64[4] y) { y = BitwiseAnd(x, x) }"), "no such operator", "other operations"
    ),
    "opset 6": Trap(
        graph("(float[3, 3] x, float[3] b) => (float[3, 3] y) { y = Add <broadcast = 1, axis = 0> (x, b) }", 6),
        "opset 6; the parser takes 7 to 27", "--opset 23",
    ),
    "opset 28": Trap(
        graph("(float[2] x) => (float[2] y) { y = Relu(x) }", 28), "opset 28 is read as if", "--opset 23", builds,
        fatal=False,
    ),
    "double": Trap(
        graph("(double[2] x) => (double[2] y) { y = Relu(x) }"), "DOUBLE is not a type of TensorRT's", "float32",
        lambda trial: "Datatype: Double" not in trial.log and "Datatype: Float" in trial.log,
    ),
    "double inside": Trap(
        graph("(float[2] x) => (float[2] y) { a = Cast <to = 11> (x) b = Exp(a) y = Cast <to = 1> (b) }"),
        "DOUBLE is computed as FLOAT", "float32", builds, fatal=False,
    ),
    **{
        f"{name} input": Trap(
            graph(f"({name}[2] x) => ({name}[2] y) {{ y = Identity(x) }}"), f"{name.upper()} is not a type", ""
        )
        for name in ("int16", "uint16", "uint32", "uint64", "string", "complex64")
    },
    "int16 constant": Trap(
        graph("(float[2] x) => (float[2] y) <int16 c = {1}> { a = Cast <to = 1> (c) y = Add(x, a) }"),
        "INT16 is not a type", "int32",
    ),
    "bytes moved": Trap(
        graph(
            "(uint8[1, 8, 8, 3] x) => (float[1, 3, 8, 8] y)"
            " { a = Transpose <perm = [0, 3, 1, 2]> (x) y = Cast <to = 1> (a) }"
        ),
        "UINT8 is refused between nodes", "cast bytes",
    ),
    "bytes computed": Trap(
        graph("(float[2] x) => (float[2] y) { a = Cast <to = 2> (x) b = Add(a, a) y = Cast <to = 1> (b) }"),
        "UINT8 is refused between nodes", "cast bytes",
    ),
}  # fmt: skip
