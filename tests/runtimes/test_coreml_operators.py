"""Every operator of ONNX that a Core ML package is made of answers what ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from coreml_graphs import from_text, interpreted
from numpy.typing import NDArray

from runtimes.coreml.translate.operators import OPERATORS
from toolkit.errors import UnsupportedError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 6)).astype(np.float32)
FEEDS: Mapping[str, NDArray[Any]] = {
    "x": X,
    "y": RNG.normal(size=(2, 4, 6)).astype(np.float32),
    "ids": RNG.integers(0, 6, (2, 4)),
    "image": RNG.normal(size=(2, 4, 6, 5)).astype(np.float32),
    "heads": RNG.normal(size=(2, 3, 4, 8)).astype(np.float32),
    "angles": RNG.normal(size=(2, 4, 3)).astype(np.float32),
}
TYPES = {
    "x": "float[batch, steps, 6]",
    "y": "float[batch, steps, 6]",
    "ids": "int64[batch, steps]",
    "image": "float[batch, 4, 6, 5]",
    "heads": "float[batch, 3, steps, 8]",
    "angles": "float[batch, steps, 3]",
}
WEIGHTS: Mapping[str, NDArray[Any]] = {
    "w": RNG.normal(size=(6, 5)).astype(np.float32),
    "bias5": RNG.normal(size=5).astype(np.float32),
    "g": RNG.normal(size=6).astype(np.float32),
    "table": RNG.normal(size=(6, 3)).astype(np.float32),
    "kernel": RNG.normal(size=(6, 2, 3, 2)).astype(np.float32),
    "bias": RNG.normal(size=6).astype(np.float32),
    "square": RNG.normal(size=(8, 4, 4)).astype(np.float32),
}
UNARY = (
    "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "LeakyRelu", "LogSoftmax", "Neg", "Reciprocal", "Relu",
    "Round", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Tanh",
)  # fmt: skip
REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
AS_NUMBER = "out = Cast <to: int = 1> (truth)"
INTS = "<value: tensor = int64"

CASES: Mapping[str, str] = {
    **{name: f"out = {name} (x)" for name in UNARY},
    **{name: f"out = {name} (x, y)" for name in ("Add", "Div", "Max", "Min", "Mul", "Sub", "Sum")},
    **{name: f"axes = Constant {INTS}[1] {{-1}}> () out = {name} (x, axes)" for name in REDUCTIONS},
    **{f"{name}-all": f"out = {name} <keepdims: int = 0> (x) " for name in ("ReduceMean", "ReduceMax")},
    **{name: f"truth = {name} (x, y) {AS_NUMBER}" for name in COMPARISONS},
    **{
        name: f"zero = Constant <value: tensor = float {{0}}> () a = Greater (x, zero) b = Less (y, zero) "
        f"truth = {name} (a, b) {AS_NUMBER}"
        for name in ("And", "Or", "Xor")
    },
    "Not": f"a = Greater (x, y) truth = Not (a) {AS_NUMBER}",
    "IsNaN": f"a = Sqrt (x) truth = IsNaN (a) {AS_NUMBER}",
    "IsInf": f"a = Reciprocal (x) b = Relu (x) c = Reciprocal (b) d = Add (a, c) truth = IsInf (d) {AS_NUMBER}",
    "Sqrt": "a = Abs (x) out = Sqrt (a)",
    "Log": "a = Abs (x) out = Log (a)",
    "Pow": "two = Constant <value: tensor = float {2}> () half = Constant <value: tensor = float {0.5}> () "
    "a = Pow (x, two) out = Pow (a, half)",
    "Mod": "three = Constant <value: tensor = int64 {3}> () a = Mod (ids, three) out = Cast <to: int = 1> (a)",
    "Div-sizes": "three = Constant <value: tensor = int64 {3}> () a = Div (ids, three) out = Cast <to: int = 1> (a)",
    "Div-below-zero": f"three = Constant {INTS} {{3}}> () two = Constant {INTS} {{2}}> () low = Sub (ids, three) "
    "a = Div (low, two) out = Cast <to: int = 1> (a)",
    "Div-of-shapes": f"three = Constant {INTS} {{3}}> () n = Shape (x) a = Div (n, three) out = Cast <to: int = 1> (a)",
    "Pow-wider": "two = Constant <value: tensor = float[1, 1, 1, 1] {2}> () out = Pow (x, two)",
    "Clip": "low = Constant <value: tensor = float {-0.5}> () high = Constant <value: tensor = float {0.7}> () "
    "out = Clip (x, low, high)",
    "Clip-low": "low = Constant <value: tensor = float {-0.5}> () out = Clip (x, low)",
    "Gelu": "out = Gelu (x)",
    "Gelu-tanh": 'out = Gelu <approximate: string = "tanh"> (x)',
    "CastLike": "a = CastLike (ids, x) out = Identity (a)",
    "Where": "truth = Greater (x, y) out = Where (truth, x, y)",
    "Where-scalars": "truth = Greater (x, y) one = Constant <value: tensor = float {1}> () "
    "low = Constant <value: tensor = float {-9}> () out = Where (truth, one, low)",
    "Where-smaller": f"axes = Constant {INTS}[1] {{1}}> () a = ReduceMax (x, axes) b = ReduceMin (x, axes) "
    "truth = Greater (x, y) out = Where (truth, a, b)",
    "Shape": "n = Shape (x) out = Cast <to: int = 1> (n)",
    "Shape-part": "n = Shape <start: int = -2, end: int = 2> (x) out = Cast <to: int = 1> (n)",
    "Size": "n = Size (x) out = Cast <to: int = 1> (n)",
    "Reshape": f"shape = Constant {INTS}[4] {{0, 0, 2, 3}}> () out = Reshape (x, shape)",
    "Reshape-merged": f"shape = Constant {INTS}[2] {{-1, 6}}> () out = Reshape (x, shape)",
    "Reshape-moved": f"perm = Transpose <perm: ints = [1, 0, 2]> (x) shape = Constant {INTS}[4] {{0, 0, -1, 2}}> () "
    "out = Reshape (perm, shape)",
    "Reshape-computed": f"n = Shape <start: int = 0, end: int = 2> (x) rest = Constant {INTS}[2] {{3, 2}}> () "
    "shape = Concat <axis: int = 0> (n, rest) out = Reshape (x, shape)",
    "Expand": f"n = Shape <start: int = 0, end: int = 2> (x) rest = Constant {INTS}[1] {{6}}> () "
    "shape = Concat <axis: int = 0> (n, rest) out = Expand (g, shape)",
    "Expand-known": f"shape = Constant {INTS}[3] {{1, 3, 6}}> () out = Expand (g, shape)",
    "Tile": f"times = Constant {INTS}[3] {{1, 2, 3}}> () out = Tile (x, times)",
    "Transpose": "out = Transpose <perm: ints = [2, 0, 1]> (x)",
    "Transpose-reversed": "out = Transpose (x)",
    "Unsqueeze": f"axes = Constant {INTS}[2] {{0, -1}}> () out = Unsqueeze (x, axes)",
    "Squeeze": f"axes = Constant {INTS}[1] {{1}}> () a = ReduceSum (x, axes) out = Squeeze (a, axes)",
    "Flatten": "out = Flatten (image)",
    "Concat": "out = Concat <axis: int = -1> (x, y)",
    "Split": f"sizes = Constant {INTS}[2] {{2, 4}}> () a, b = Split <axis: int = 2> (x, sizes) "
    "out = Concat <axis: int = 2> (b, a)",
    "Split-even": "a, b = Split <axis: int = 2, num_outputs: int = 2> (x) out = Sub (a, b)",
    "Slice": f"start = Constant {INTS}[2] {{1, 0}}> () end = Constant {INTS}[2] {{-1, 9223372036854775807}}> () "
    f"axes = Constant {INTS}[2] {{-1, 1}}> () step = Constant {INTS}[2] {{2, 1}}> () "
    "out = Slice (x, start, end, axes, step)",
    "Slice-computed": f"n = Shape <start: int = 1, end: int = 2> (ids) one = Constant {INTS}[1] {{1}}> () "
    f"end = Sub (n, one) start = Constant {INTS}[1] {{0}}> () axes = Constant {INTS}[1] {{1}}> () "
    "out = Slice (x, start, end, axes)",
    "Gather": "out = Gather (table, ids)",
    "Gather-last": "last = Constant <value: tensor = int64 {-1}> () out = Gather <axis: int = 2> (x, last)",
    "GatherElements": f"axes = Constant {INTS}[1] {{-1}}> () a = Unsqueeze (ids, axes) four = "
    "Constant <value: tensor = int64 {4}> () b = Mod (a, four) out = GatherElements <axis: int = 1> (x, b)",
    "Range": "zero = Constant <value: tensor = int64 {0}> () one = Constant <value: tensor = int64 {1}> () "
    f"n = Shape <start: int = 1, end: int = 2> (x) axes = Constant {INTS}[1] {{0}}> () end = Squeeze (n, axes) "
    "a = Range (zero, end, one) out = Cast <to: int = 1> (a)",
    "ConstantOfShape": "n = Shape (ids) a = ConstantOfShape <value: tensor = float[1] {3}> (n) "
    "b = Cast <to: int = 1> (ids) out = Add (a, b)",
    "Pad": f"pads = Constant {INTS}[6] {{0, 1, 2, 0, 3, 0}}> () fill = Constant <value: tensor = float {{7}}> () "
    "out = Pad (x, pads, fill)",
    "Trilu": "out = Trilu (x)",
    "Trilu-lower": "out = Trilu <upper: int = 0> (x)",
    "CumSum": "axis = Constant <value: tensor = int64 {1}> () out = CumSum (x, axis)",
    "ArgMax": "a = ArgMax <axis: int = 2, keepdims: int = 0> (x) out = Cast <to: int = 1> (a)",
    "ArgMin": "a = ArgMin <axis: int = 1> (x) out = Cast <to: int = 1> (a)",
    "LayerNormalization": "out = LayerNormalization <axis: int = -1, epsilon: float = 0.01> (x, g, g)",
    "RMSNormalization": "out = RMSNormalization <axis: int = -1, epsilon: float = 0.01> (x, g)",
    "MatMul": "out = MatMul (x, w)",
    "MatMul-bias": "a = MatMul (x, w) out = Add (bias5, a)",
    "MatMul-computed": "a = Transpose <perm: ints = [0, 2, 1]> (y) out = MatMul (x, a)",
    "Gemm": f"shape = Constant {INTS}[2] {{-1, 6}}> () a = Reshape (x, shape) out = Gemm (a, w, bias5)",
    "Gemm-turned": f"shape = Constant {INTS}[2] {{-1, 6}}> () a = Reshape (x, shape) t = Transpose (w) "
    "out = Gemm <transB: int = 1> (a, t, bias5)",
    "Conv": "out = Conv <group: int = 2, pads: ints = [1, 0, 2, 1], strides: ints = [2, 1], dilations: ints = [1, 2]> "
    "(image, kernel, bias)",
    "RotaryEmbedding": "cos = Cos (angles) sin = Sin (angles) "
    "out = RotaryEmbedding <rotary_embedding_dim: int = 6> (heads, cos, sin)",
    "Attention": "out = Attention (heads, heads, heads)",
    "QuantizeLinear": "scale = Constant <value: tensor = float {0.05}> () "
    "zero = Constant <value: tensor = int8 {3}> () "
    "a = QuantizeLinear (x, scale, zero) out = DequantizeLinear (a, scale, zero)",
}  # fmt: skip
ELSEWHERE = {"Cast", "TensorScatter", "DequantizeLinear", "Constant"}
"""In many cases here, or with a cache in test_coreml_lower.py."""


def _model(nodes: str) -> ir.Model:
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    fed = ", ".join(f"{TYPES[name]} {name}" for name in FEEDS if name in words)
    body = nodes.replace(") ", ")\n")
    return from_text(
        f"case ({fed}) => (float[] out) {{\n{body}\n}}",
        {name: array for name, array in WEIGHTS.items() if name in words},
    )


@pytest.mark.parametrize("name", CASES)
def test_operator_answers_what_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    model = _model(CASES[name])
    feeds = {value.name: FEEDS[str(value.name)] for value in model.graph.inputs}
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["out"], feeds)

    answered = interpreted(model, feeds, tmp_path)["out"]

    assert answered.shape == expected.shape
    np.testing.assert_allclose(answered, expected, rtol=2e-5, atol=2e-5)


def test_every_operator_of_the_table_is_tried() -> None:
    tried = {node.op_type for nodes in CASES.values() for node in _model(nodes).graph}
    assert set(OPERATORS) - tried - ELSEWHERE == set()


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("out = Hardmax (x)", "no operator of this name is known here"),
        ("one = Constant <value: tensor = float {2}> () out = Mod <fmod: int = 1> (x, one)", "sign of the dividend"),
        ('out = Conv <auto_pad: string = "SAME_UPPER"> (image, kernel, bias)', "padding is left to the runtime"),
        ("out = Attention <softcap: float = 2.0> (heads, heads, heads)", "softcap"),
    ],
)
def test_what_has_no_form_is_refused_by_name(nodes: str, why: str, tmp_path: Path) -> None:
    model = _model(nodes)
    node = model.graph[-1]
    with pytest.raises(UnsupportedError, match=f"{node.op_type} .* has no form in an ML Program: .*{why}"):
        interpreted(model, {}, tmp_path)
