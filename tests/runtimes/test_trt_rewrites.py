"""What the lowering rewrites away: the same numbers on ONNX Runtime, nothing left to object to, an engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from test_trt_lowering import CASES, fused, tensors
from trt_traps import CONSTANTS, QUANTIZED, TRAPS, WEIGHT, builds, graph, product
from trt_trial import Trial, attempt

from runtimes import portable_session
from runtimes._standard.biases import fold_biases
from runtimes._standard.signed import sign_quantization
from runtimes._tensorrt.lowering import lower_model
from runtimes._tensorrt.preflight import objections
from runtimes._tensorrt.rules.byte_inputs import cast_byte_inputs
from toolkit.errors import UnsupportedError
from toolkit.types import Step

Rule = Callable[[ir.Model], list[Step]]

NO_RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (pip install 'tensorrt-rtx-cu13>=1.7')",
)
BYTE_ACTIVATION = "a = QuantizeLinear(x, s, n) b = DequantizeLinear(a, s, n)"
SCALES = ", ".join(f"{0.01 * number:.2f}" for number in range(1, 33))
BIAS_SCALES = ", ".join(f"{0.001 * number:.3f}" for number in range(1, 33))
ZEROS = ", ".join(["0"] * 32)
BIAS = ", ".join(str(number * number - 300) for number in range(32))
PICTURE = "(uint8[1, 8, 8, 3] x) => (float[1, 3, 4, 8] y)"


def gemm(bias: str) -> ir.Model:
    """ONNX Runtime takes it for granted that a bias has the activation's scale times the weight's."""
    varied = CONSTANTS.replace(f"float[32] t = {{{', '.join(['0.1'] * 32)}}}", f"float[32] t = {{{SCALES}}}")
    constants = f"{varied}, int32[32] e = {{{BIAS}}}, float[32] r = {{{BIAS_SCALES}}}, int32[32] o = {{{ZEROS}}}"
    return graph(
        f"(float[16, 32] x) => (float[16, 32] y) <{constants}> {{ {QUANTIZED} {WEIGHT} d = {bias} y = Gemm(b, c, d) }}"
    )


REWRITES: dict[str, tuple[Rule, Callable[[], ir.Model]]] = {
    "uint8 activations": (sign_quantization, lambda: product(BYTE_ACTIVATION + WEIGHT, "uint8 n = {128}")),
    "uint8 activations by constant nodes": (
        sign_quantization,
        lambda: product("n = Constant <value = uint8 {128}> ()" + BYTE_ACTIVATION + WEIGHT),
    ),
    "uint8 weights": (sign_quantization, TRAPS["uint8 weight"].model.clone),
    "int32 bias": (fold_biases, lambda: gemm("DequantizeLinear <axis = 0> (e, r)")),
    "int32 bias, zero points": (fold_biases, lambda: gemm("DequantizeLinear <axis = 0> (e, r, o)")),
    "bytes moved": (
        cast_byte_inputs,
        lambda: graph(
            f"{PICTURE} <int64[1] from = {{0}}, int64[1] to = {{4}}, int64[1] rows = {{2}}>"
            " { a = Transpose <perm = [0, 3, 1, 2]> (x) b = Slice(a, from, to, rows) c = Cast <to = 1> (b)"
            " y = Sqrt(c) }"
        ),
    ),
    "bytes moved, and cast as they are": (
        cast_byte_inputs,
        lambda: graph(
            "(uint8[4, 8] x) => (float[8, 4] y, float[4, 8] z)"
            " { a = Transpose(x) b = Cast <to = 1> (x) y = Cast <to = 1> (a) z = Sqrt(b) }"
        ),
    ),
}  # fmt: skip

LEFT_ALONE: dict[str, tuple[Rule, Callable[[], ir.Model]]] = {
    "another zero point": (sign_quantization, lambda: product(BYTE_ACTIVATION + WEIGHT, "uint8 n = {3}")),
    "bytes that leave": (
        sign_quantization,
        lambda: graph(
            "(float[4] x) => (uint8[4] a, float[4] y) <float s = {0.1}, uint8 n = {128}>"
            " { a = QuantizeLinear(x, s, n) y = DequantizeLinear(a, s, n) }"
        ),
    ),
    "a bias that is computed": (
        fold_biases,
        lambda: graph("(int32[4] e) => (float[4] y) <float s = {0.1}> { a = DequantizeLinear(e, s) y = Relu(a) }"),
    ),
    "bytes that wrap around": (
        cast_byte_inputs,
        lambda: graph("(uint8[4] x) => (float[4] y) { a = Add(x, x) y = Cast <to = 1> (a) }"),
    ),
    "bytes that leave as they came": (
        cast_byte_inputs,
        lambda: graph("(uint8[2, 4] x) => (uint8[4, 2] y) { y = Transpose(x) }"),
    ),
}
FUNCTIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "function without an optional input": lambda x: x,
    "function without the last input": lambda x: x,
    "function without the last output": lambda x: np.maximum(x, 0),
    "function called Attention": np.negative,
    "function called Gelu": np.negative,
}
"""What the body of each computes."""


def feeds(model: ir.Model) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(5)
    drawn = {}
    for value in model.graph.inputs:
        dtype, shape = value.dtype.numpy(), value.shape.numpy()
        drawn[value.name] = (
            random.integers(0, 256, shape).astype(dtype)
            if value.dtype == ir.DataType.UINT8
            else (5 * random.standard_normal(shape)).astype(dtype)
        )
    return drawn


def run(model: ir.Model, path: Path, given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    ir.save(model, path)
    session = portable_session(path)
    answers = list(session.run(given).values())
    session.close()
    return answers


@pytest.mark.parametrize("case", REWRITES, ids=str)
def test_a_rewrite_keeps_every_number(case: str, tmp_path: Path) -> None:
    rule, make = REWRITES[case]
    model = make()
    given = feeds(model)
    before = run(model, tmp_path / "before.onnx", given)
    assert [found for found in objections(model) if found.fatal]
    (step,) = rule(model)
    assert (step.stage, step.count) == ("lower", 1)
    # ONNX Runtime adds an int32 bias before it scales the sum.
    rounding = 1e-6 if rule is fold_biases else 0
    for left, right in zip(before, run(model, tmp_path / "after.onnx", given), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=rounding * np.abs(left).max())


@pytest.mark.parametrize("case", REWRITES, ids=str)
def test_the_lowering_leaves_nothing_to_object_to(case: str, tmp_path: Path) -> None:
    """Lowering casts what is beside int8 to fp16 too: near, not equal."""
    model = REWRITES[case][1]()
    given = feeds(model)
    before = run(model, tmp_path / "before.onnx", given)
    lower_model(model)
    assert list(objections(model)) == []
    for left, right in zip(before, run(model, tmp_path / "after.onnx", given), strict=True):
        assert np.linalg.norm(left - right) <= 5e-3 * np.linalg.norm(left)


@pytest.mark.parametrize("case", LEFT_ALONE, ids=str)
def test_what_cannot_be_rewritten_exactly_is_left_to_the_preflight(case: str) -> None:
    rule, make = LEFT_ALONE[case]
    model = make()
    before = ir.to_proto(model).SerializeToString()
    assert rule(model) == []
    assert ir.to_proto(model).SerializeToString() == before
    with pytest.raises(UnsupportedError):
        lower_model(model)


@pytest.mark.parametrize("case", FUNCTIONS, ids=str)
def test_functions_are_inlined(case: str, tmp_path: Path) -> None:
    model = TRAPS[case].model.clone()
    steps = lower_model(model)
    assert [(step.what, step.count) for step in steps] == [("function calls inlined", 1)]
    assert not model.functions
    assert list(objections(model)) == []
    given = feeds(model)
    (answer,) = run(model, tmp_path / "after.onnx", given)
    np.testing.assert_array_equal(answer, FUNCTIONS[case](given["x"]))


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    graphs = {name: make() for name, (_, make) in REWRITES.items()}
    graphs.update({name: TRAPS[name].model.clone() for name in FUNCTIONS})
    graphs.update({f"attention, {name}": attention_in_half(name) for name in CASES})
    graphs.update({name: attention_model() for name, attention_model in ATTENTIONS.items()})
    for model in graphs.values():
        lower_model(model)
        assert not [found for found in objections(model) if found.fatal]
    return attempt(graphs, tmp_path_factory.mktemp("trials"))


def with_fp32_mask() -> ir.Model:
    half = {name: array.astype(np.float16) for name, array in tensors().items()}
    return fused({**half, "mask": np.zeros((1, 1, 5, 5), np.float32)})


def with_one_tensor() -> ir.Model:
    return fused({"query": tensors()["query"].astype(np.float16)}, order=("query", "query", "query"))


ATTENTIONS = {"fp32 mask on fp16": with_fp32_mask, "queries are keys": with_one_tensor}


def attention_in_half(case: str) -> ir.Model:
    inputs, attributes = CASES[case]
    half = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in inputs.items()}
    return fused(half, **attributes)


@pytest.mark.requires_rtx
@NO_RTX
@pytest.mark.parametrize(
    "case",
    [*REWRITES, *FUNCTIONS, "fp32 mask on fp16", "queries are keys", *(f"attention, {name}" for name in CASES)],
    ids=str,
)
def test_what_the_lowering_writes_builds(case: str, trials: dict[str, Trial]) -> None:
    assert builds(trials[case]), trials[case].log
    if case.startswith(("uint8", "int32")):
        assert trials[case].int8_gemms == 1
