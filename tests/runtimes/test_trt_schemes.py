"""The schemes of new number types in TensorRT's form: which GPU runs them, the lowered graph, and real engines."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from trt_graphs import FEEDS, SPEC, Block

from quantize import quantize
from runtimes import portable_session
from runtimes._tensorrt.architectures import MINIMUM, refuse, suited
from runtimes._tensorrt.compile import compile_engines
from runtimes._tensorrt.job import Job
from runtimes._tensorrt.lowering import lower_graph
from runtimes._tensorrt.preflight import objections
from runtimes._tensorrt.runtime import ARCHITECTURES, TensorRT, profiles_of
from runtimes.trt_rtx import SCHEMES
from toolkit.errors import StageError, UnsupportedError
from toolkit.types import Calibration, ExportedGraph, LoweredGraph, TargetOptions

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT
CALIBRATION = Calibration(lambda: iter([FEEDS]), 1, "test")
NEW = ("bf16", "fp8", "nvfp4")

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (pip install 'tensorrt-rtx-cu13>=1.7')",
)


def exported(folder: Path) -> ExportedGraph:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "exported.onnx"
    ir.save(Block(int8=False).model(), path)
    return ExportedGraph(path, SPEC, ())


def lowered(scheme: str, folder: Path) -> LoweredGraph:
    made = quantize(exported(folder), scheme, CALIBRATION, folder / "quantized")
    return lower_graph(made, folder / "lowered", "trt-rtx")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoweredGraph]:
    return {scheme: lowered(scheme, tmp_path_factory.mktemp(scheme)) for scheme in NEW}


def answer(path: Path) -> Any:
    return portable_session(path).run(FEEDS)["y"]


def test_the_architectures_that_a_scheme_runs_on() -> None:
    assert suited("fp16", ARCHITECTURES) == ARCHITECTURES
    assert suited("fp8", ARCHITECTURES) == ("sm89", "sm120")
    assert suited("nvfp4", ("sm75", "sm120", "sm121")) == ("sm120", "sm121")
    assert suited("bf16", ("sm75", "sm80")) == ("sm80",)
    assert set(MINIMUM) <= set(SCHEMES)


def test_an_architecture_that_lacks_the_number_type_is_refused_by_name() -> None:
    refuse("fp8", ("sm89", "sm120"))
    refuse("fp16", ("sm75",))
    with pytest.raises(UnsupportedError, match=r"'nvfp4' needs sm120 or newer, not sm80, sm89") as caught:
        refuse("nvfp4", ("sm80", "sm89", "sm120"))
    assert "fp16, int8" in caught.value.hint


@pytest.mark.parametrize("scheme", NEW)
def test_the_preflight_takes_the_lowered_graph(scheme: str, graphs: dict[str, LoweredGraph]) -> None:
    assert list(objections(ir.load(graphs[scheme].path))) == []


@pytest.mark.parametrize(("scheme", "error"), [("bf16", 0.02), ("fp8", 0.1), ("nvfp4", 0.3)])
def test_near_the_fp32_graph(scheme: str, error: float, graphs: dict[str, LoweredGraph], tmp_path: Path) -> None:
    before, after = answer(exported(tmp_path).path), answer(graphs[scheme].path)
    assert after.dtype == np.float32
    assert 0 < np.linalg.norm(after - before) < error * np.linalg.norm(before)


def test_fp8_scales_are_half_and_stand_right_before_the_products(graphs: dict[str, LoweredGraph]) -> None:
    model = ir.load(graphs["fp8"].path)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert len(products) == 4
    for node in products:
        sources = [value.producer() for value in node.inputs]
        assert [source.op_type for source in sources] == ["DequantizeLinear"] * 2
        assert {source.inputs[1].dtype for source in sources} == {HALF}


def test_nvfp4_scales_are_computed_in_full_precision_and_the_products_are_half(graphs: dict[str, LoweredGraph]) -> None:
    model = ir.load(graphs["nvfp4"].path)
    largest = [
        node.outputs[0] for node in model.graph if node.op_type == "ReduceMax" and "_size" in node.outputs[0].name
    ]
    assert {value.dtype for value in largest} == {FULL}
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.attributes.get_int("block_size", 0):
            assert node.inputs[1].dtype == FULL
    products = [node for node in model.graph if node.op_type == "MatMul"]
    quantized = [node for node in products if node.inputs[0].producer().op_type == "Cast"]
    assert len(quantized) == 4
    assert {value.dtype for node in quantized for value in node.inputs} == {HALF}


@pytest.mark.requires_rtx
@needs_rtx
@pytest.mark.parametrize(("scheme", "architecture"), [("bf16", "sm80"), ("fp8", "sm89"), ("nvfp4", "sm120")])
def test_compiles_for_the_oldest_architecture_that_has_it(
    scheme: str, architecture: str, graphs: dict[str, LoweredGraph]
) -> None:
    engine = TensorRT("trt-rtx", ("tensorrt_rtx",)).build(graphs[scheme], TargetOptions((architecture,)))
    assert [file.name for file in engine.files if file.suffix == ".plan"] == [f"engine-{architecture}.plan"]
    assert engine.details["engines"][architecture]["fused_attentions"] == 1


@pytest.mark.requires_rtx
@needs_rtx
def test_own_choice_is_filtered_and_the_users_is_refused(graphs: dict[str, LoweredGraph]) -> None:
    runtime = TensorRT("trt-rtx", ("tensorrt_rtx",))
    built = runtime.build(graphs["nvfp4"])
    assert [file.name for file in built.files if file.suffix == ".plan"] == ["engine-sm120.plan"]
    with pytest.raises(UnsupportedError, match="needs sm120"):
        runtime.build(graphs["nvfp4"], TargetOptions(("sm89", "sm120")))


@pytest.mark.requires_rtx
@needs_rtx
def test_the_limit_is_the_builders_own(graphs: dict[str, LoweredGraph]) -> None:
    """Should a later TensorRT compile fp8 for older GPUs, MINIMUM has to say so."""
    path = graphs["fp8"].path
    with pytest.raises(StageError, match="fp8_e4m3"):
        compile_engines(Job("tensorrt_rtx", str(path), str(path.parent), ("sm86",), profiles_of(SPEC)))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed: it builds")
def test_a_wrong_architecture_is_refused_where_nothing_is_compiled_too(graphs: dict[str, LoweredGraph]) -> None:
    runtime = TensorRT("trt", ("tensorrt",))
    with pytest.raises(UnsupportedError, match="needs sm89"):
        runtime.build(graphs["fp8"], TargetOptions(("sm80",)))
    assert runtime.build(graphs["fp8"], TargetOptions(("sm89",))).status == "graph-only"
