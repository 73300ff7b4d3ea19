"""A transformer whose numbers pass 65504: plain fp16 ruins it, the planner keeps it whole and says why."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from quantize.half_cast import cast_graph
from quantize.half_precision import Decision
from quantize.residuals import residual_sums
from runtimes import portable_session
from runtimes._onnxruntime.session import OrtSession
from toolkit.bundle.read import open_bundle, report
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.sessions import open_graph
from toolkit.types import Step, TargetOptions

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
FULL, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
FEEDS = {"x": np.random.default_rng(0).standard_normal((4, 9, 32)).astype(np.float32)}

OVERFLOWING = """
import torch
from torch import nn

WIDTH, HEADS = 64, 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Overflowing(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(32, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16)
        with torch.no_grad():
            # Squares of the first block's normalisations: deviations of some 1000.
            self.stem.weight.mul_(1000)
            # Scores of the second block: queries and keys of some hundreds each.
            self.blocks[1].q.weight.mul_(600)
            self.blocks[1].k.weight.mul_(600)
            # The third block's last sum, as massive activations are in trained models: each addend fits.
            self.blocks[2].out.bias[3] = 40000
            self.blocks[2].down.bias[3] = 40000

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return {"y": self.head(self.norm(x))}


def make():
    torch.manual_seed(0)
    return Overflowing(), {"x": torch.randn(4, 9, 32)}
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model as it ships: each export passed its gates, or there would be none."""
    root = tmp_path_factory.mktemp("overflow")
    (root / "overflowing.py").write_text(OVERFLOWING, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        targets = ["ort-cpu-fp32", "ort-cuda-fp32", "ort-cpu-fp16", "trt-fp16", "trt-int8"]
        options = TargetOptions(architectures=("sm89",))
        request = Request(model="overflowing:make", targets=targets, output=root / "out", options=options)
        return dict(zip(targets, export(plan(request)), strict=True))


def graph_of(folder: Path) -> ir.Model:
    return ir.load(folder / open_bundle(folder).manifest.graph)


def kept(folder: Path, kind: str) -> Step:
    (step,) = [step for step in open_bundle(folder).manifest.steps if step.what == f"kept in fp32: {kind}"]
    return step


def attention_dtypes(model: ir.Model) -> list[ir.DataType | None]:
    """Of queries, in graph order, whether the attention is one node or matrix products."""
    return [
        node.inputs[0].dtype
        for node in model.graph
        if node.op_type in {"Attention", "Softmax"} and node.inputs[0] is not None
    ]


def answer(model: ir.Model) -> NDArray[Any]:
    """By ONNX's reference evaluator, which rounds to fp16 after each operator; ONNX Runtime's CPU leaves that out."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (made,) = ReferenceEvaluator(ir.to_proto(ir.external_data.load_to_model(model))).run(None, FEEDS)
    return np.asarray(made)


def plain_half(folder: Path) -> ir.Model:
    """The bundle's graph, one of standard operators, with each of them in fp16, whatever its range."""
    plain = graph_of(folder)
    cast_graph(plain, {node: Decision(True) for node in plain.graph})
    return plain


def test_plain_half_precision_is_garbage_and_ours_is_not(bundles: dict[str, Path]) -> None:
    exact = OrtSession(bundles["ort-cpu-fp32"] / "model.onnx").run(FEEDS)["y"]
    plain = plain_half(bundles["ort-cuda-fp32"])
    assert not np.linalg.norm(answer(plain) - exact) < 0.5 * np.linalg.norm(exact)
    assert np.linalg.norm(answer(graph_of(bundles["trt-fp16"])) - exact) < 3e-3 * np.linalg.norm(exact)


def test_what_measures_an_export_sees_the_overflow(bundles: dict[str, Path], tmp_path: Path) -> None:
    ir.save(plain_half(bundles["ort-cuda-fp32"]), tmp_path / "model.onnx", external_data="model.onnx.data")
    exact, hidden = OrtSession(bundles["ort-cpu-fp32"] / "model.onnx"), OrtSession(tmp_path / "model.onnx")
    expected = exact.run(FEEDS)["y"]
    assert np.linalg.norm(hidden.run(FEEDS)["y"] - expected) < 1e-3 * np.linalg.norm(expected)
    assert np.isnan(portable_session(tmp_path / "model.onnx").run(FEEDS)["y"]).any()
    ours = portable_session(bundles["trt-fp16"] / "model.onnx")
    assert ours.ran_on.endswith("float16 emulated in float32")
    assert np.linalg.norm(ours.run(FEEDS)["y"] - expected) < 3e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(("target", "measured"), [("ort-cpu-fp16", False), ("trt-fp16", True)])
def test_only_a_graph_that_stands_for_a_device_is_rounded(
    target: str, measured: bool, bundles: dict[str, Path]
) -> None:
    """ONNX Runtime's CPU is measured in its own arithmetic, and --on-cpu opens what was measured."""
    bundle = open_bundle(bundles[target])
    told = {stage.stage: stage.ran_on for stage in report(bundle).stages}
    assert told["quantize"].endswith("float16 emulated in float32")
    assert told["lower" if measured else "engine"].endswith("float16 emulated in float32") == measured
    session = open_graph(bundle)
    session.close()
    assert session.ran_on.endswith("float16 emulated in float32") == measured


@pytest.mark.parametrize("target", ["trt-fp16", "trt-int8"])
def test_what_overflows_is_kept_out_of_half_precision_and_named(target: str, bundles: dict[str, Path]) -> None:
    folder = bundles[target]
    assert open_bundle(folder).manifest.drift.passed
    model = graph_of(folder)
    assert attention_dtypes(model) == [HALF, FULL, HALF]
    norms = [node.inputs[0].dtype for node in model.graph if node.op_type == "LayerNormalization"]
    assert norms == [FULL] * 7
    scores = kept(folder, "scores")
    assert (scores.count, scores.reason.partition(":")[0]) == (1, "FusedAttention of blocks.1")
    assert float(scores.reason.rpartition(" ")[2]) > 65504
    largest = kept(folder, "range").reason.partition(";")[0]
    assert largest.startswith("Add of blocks.2: |add")
    assert float(largest.rpartition(" ")[2]) == pytest.approx(8e4, rel=0.05)
    squares = kept(folder, "normalisation").reason
    assert "LayerNormalization of blocks.0.norm1: squares reach 4.2" in squares


def test_a_residual_stream_has_one_precision(bundles: dict[str, Path]) -> None:
    """One sum overflows; the five others are fp32 with it, for what they round is carried on."""
    sums = list(residual_sums(graph_of(bundles["trt-fp16"]).graph))
    assert len(sums) == 6
    assert 1 <= kept(bundles["trt-fp16"], "residual stream").count <= 5


def test_residual_sums_read_no_int8_and_the_manifest_says_so(bundles: dict[str, Path]) -> None:
    steps = open_bundle(bundles["trt-int8"]).manifest.steps
    assert [step.count for step in steps if step.what == "residual sums kept out of int8"] == [6]


@pytest.mark.requires_rtx
@pytest.mark.skipif(not HAS_RTX, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize(("target", "fused"), [("trt-fp16", 2), ("trt-int8", 2)])
def test_both_compile_and_fuse_what_stayed_in_half(target: str, fused: int, bundles: dict[str, Path]) -> None:
    engine: Any = open_bundle(bundles[target]).manifest.engine
    assert engine.status in ("built", "executed")
    built = engine.details["engines"]["sm89"]
    assert built["fused_attentions"] >= fused
    assert target == "trt-fp16" or built["gemms"]["int8"] > 0
