"""What fused nodes hide, written out and measured: against numpy, on a graph with a cache and shared keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from quantize_graphs import OFF, Builder, graph_input

from exporters.fused_attention.node import is_attention
from quantize.calibration import measure_ranges
from quantize.half_plan import plan_half
from quantize.hidden_ranges import hidden_of
from toolkit.types import Calibration

WIDTH, SCALE = 8, 0.25


def feed(past: int, factor: float = 1.0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(past)
    shapes = {"q": (2, 4, 3, WIDTH), "k": (2, 2, 3, WIDTH), "v": (2, 2, 3, WIDTH), "x": (2, 3, WIDTH)}
    shapes |= {"past_k": (2, 2, past, WIDTH), "past_v": (2, 2, past, WIDTH)}
    return {name: (rng.normal(size=shape) * factor).astype(np.float32) for name, shape in shapes.items()}


def model() -> ir.Model:
    b = Builder()
    q = graph_input("q", ["batch", 4, "sequence", WIDTH])
    k, v = (graph_input(name, ["batch", 2, "sequence", WIDTH]) for name in "kv")
    pasts = [graph_input(f"past_{name}", ["batch", 2, "past", WIDTH]) for name in "kv"]
    x = graph_input("x", ["batch", "sequence", WIDTH])
    gain = b.weight("gain", np.ones(WIDTH, np.float32))
    layer = b.op("LayerNormalization", x, gain, module="layer", axis=-1)
    rms = b.op("RMSNormalization", x, gain, module="rms", axis=-1)
    inputs = [q, k, v, None, None, *pasts]
    node = ir.node("FusedAttention", inputs, {"scale": SCALE, **OFF}, domain="toolkit", num_outputs=3, name="attend")
    for value, name in zip(node.outputs, ("attended", "present_k", "present_v"), strict=True):
        value.name, value.dtype = name, ir.DataType.FLOAT
    node.outputs[0].shape = q.shape
    b.nodes.append(node)
    outputs = {"a": layer, "r": rms, "y": node.outputs[0], "pk": node.outputs[1], "pv": node.outputs[2]}
    return b.model([q, k, v, *pasts, x], outputs)


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    batches = [feed(0), feed(5)]
    made = model()
    hidden = hidden_of(made.graph)
    ranges = measure_ranges(made, [], Calibration(lambda: iter(batches), 2, "test"), hidden)
    found: dict[str, dict[str, float]] = {}
    for each in hidden:
        found.setdefault(each.node.op_type, {})[each.kind] = ranges[each.name].absmax
    return found


def largest(function: Any) -> float:
    return max(float(np.abs(function(feed(past))).max()) for past in (0, 5))


def test_squares_are_those_that_each_normalisation_takes(measured: dict[str, dict[str, float]]) -> None:
    def deviations(fed: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return fed["x"] - fed["x"].mean(axis=-1, keepdims=True)

    layer, rms = measured["LayerNormalization"], measured["RMSNormalization"]
    assert layer["squares"] == pytest.approx(largest(lambda fed: deviations(fed) ** 2), rel=1e-5)
    assert layer["sum of squares"] == pytest.approx(largest(lambda fed: (deviations(fed) ** 2).sum(-1)), rel=1e-5)
    assert rms["squares"] == pytest.approx(largest(lambda fed: fed["x"] ** 2), rel=1e-5)
    assert rms["sum of squares"] == pytest.approx(largest(lambda fed: (fed["x"] ** 2).sum(-1)), rel=1e-5)


def test_scores_reach_over_the_past_and_shared_keys(measured: dict[str, dict[str, float]]) -> None:
    def scores(fed: dict[str, NDArray[Any]]) -> NDArray[Any]:
        keys = np.concatenate([fed["past_k"], fed["k"]], axis=2).repeat(2, axis=1)
        return np.asarray(fed["q"] @ keys.swapaxes(2, 3) * SCALE)

    assert measured["FusedAttention"]["scores"] == pytest.approx(largest(scores), rel=1e-5)
    new = largest(lambda fed: fed["q"] @ fed["k"].repeat(2, axis=1).swapaxes(2, 3) * SCALE)
    assert measured["FusedAttention"]["scores"] > new


def test_measuring_leaves_the_graph_as_it_was() -> None:
    made = model()
    before = [node.name for node in made.graph], list(made.graph.initializers)
    measure_ranges(made, [], Calibration(lambda: iter([feed(2)]), 1, "test"), hidden_of(made.graph))
    assert ([node.name for node in made.graph], list(made.graph.initializers)) == before


@pytest.mark.parametrize(("factor", "half"), [(1.0, True), (300.0, False)])
def test_scores_alone_keep_an_attention_in_fp32(factor: float, half: bool) -> None:
    made = model()
    plan = plan_half(made, Calibration(lambda: iter([feed(2, factor)]), 1, "test"))
    (node,) = [node for node in made.graph if is_attention(node)]
    assert plan.decisions[node].half == half
    assert plan.decisions[node].why.startswith("" if half else "scores: |q·kᵀ·scale| reached")
    assert half or plan.decisions[node].magnitude > 65504
