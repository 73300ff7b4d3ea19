"""Graphs that `onnxruntime.quantization.quantize_static` writes: with which options TensorRT takes them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from trt_traps import builds
from trt_trial import Trial, attempt

from runtimes import portable_session
from runtimes._tensorrt.lowering import lower_model
from runtimes._tensorrt.preflight import objections
from toolkit.errors import UnsupportedError

SAMPLES = [np.random.default_rng(seed).standard_normal((16, 32)).astype(np.float32) for seed in range(4)]
TAKEN = {
    "op_types_to_quantize": ["MatMul", "Gemm", "Conv"],
    "activation_type": QuantType.QInt8,
    "extra_options": {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Conv"],
    },
}
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "taken": ({}, ""),
    "int32 biases": ({"QuantizeBias": True}, "INT32 is not dequantized"),
    "symmetric uint8": ({"activation_type": QuantType.QUInt8}, "uint8 is read as int8"),
    "asymmetric int8": ({"ActivationSymmetric": False}, "the zero point is not 0"),
    "asymmetric uint8": ({"activation_type": QuantType.QUInt8, "ActivationSymmetric": False}, "uint8 is read as int8"),
}
"""What is changed about the options that are taken, and what the preflight says of the graph as it is."""
LOWERED = ("taken", "int32 biases", "symmetric uint8")


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        self.rest: Iterator[NDArray[np.float32]] = iter(SAMPLES)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(({"x": sample} for sample in self.rest), None)


def write(folder: Path, case: str) -> Path:
    source, quantized = folder / "float.onnx", folder / f"{case}.onnx"
    random = np.random.default_rng(1)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> g (float[16, 32] x) => (float[16, 32] y)'
        " { a = Gemm(x, w, b) c = Relu(a) y = Gemm(c, v, d) }"
    )
    for name, shape in {"w": (32, 32), "v": (32, 32), "b": (32,), "d": (32,)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(random.standard_normal(shape, np.float32), name))
    onnx.save(model, source)
    changed = OPTIONS[case][0]
    outer = {name: value for name, value in changed.items() if name in TAKEN}
    extra = {name: value for name, value in changed.items() if name not in TAKEN}
    arguments: dict[str, Any] = {**TAKEN, **outer, "extra_options": {**TAKEN["extra_options"], **extra}}
    quantize_static(
        str(source), str(quantized), Samples(), quant_format=QuantFormat.QDQ, per_channel=True,
        weight_type=QuantType.QInt8, **arguments,
    )  # fmt: skip
    return quantized


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("static")
    return {case: write(folder, case) for case in OPTIONS}


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_the_preflight_tells_the_options_that_are_taken(case: str, graphs: dict[str, Path]) -> None:
    said = " ".join(str(found) for found in objections(ir.load(graphs[case])) if found.fatal)
    assert OPTIONS[case][1] in said
    assert bool(said) == (case != "taken")


@pytest.mark.parametrize("case", LOWERED, ids=str)
def test_the_lowering_rewrites_what_it_can(case: str, graphs: dict[str, Path], tmp_path: Path) -> None:
    model = ir.load(graphs[case])
    lower_model(model)
    assert list(objections(model)) == []
    ir.save(model, tmp_path / "lowered.onnx")
    expected, answer = (
        portable_session(path).run({"x": SAMPLES[0]})["y"] for path in (graphs[case], tmp_path / "lowered.onnx")
    )
    assert np.linalg.norm(answer - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("case", sorted(set(OPTIONS) - set(LOWERED)), ids=str)
def test_asymmetric_graphs_are_refused(case: str, graphs: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedError, match=r"zero point is not 0|uint8 is read as int8"):
        lower_model(ir.load(graphs[case]))


@pytest.fixture(scope="module")
def trials(graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    models = {case: ir.load(path) for case, path in graphs.items()}
    for case in LOWERED:
        models[f"{case}, lowered"] = ir.load(graphs[case])
        lower_model(models[f"{case}, lowered"])
    return attempt(models, tmp_path_factory.mktemp("trials"))


@pytest.mark.requires_rtx
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (pip install 'tensorrt-rtx-cu13>=1.7')",
)
def test_the_builder_agrees(trials: dict[str, Trial]) -> None:
    assert {case: builds(trials[case]) for case in OPTIONS} == {case: case == "taken" for case in OPTIONS}
    for case in ("taken", *(f"{case}, lowered" for case in LOWERED)):
        assert builds(trials[case]), trials[case].log
        assert trials[case].int8_gemms == 2
