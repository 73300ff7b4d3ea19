"""Lowering of attention for TensorRT: the same numbers as the operator's own function body, in a form that parses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from exporters.fused_attention import attach_function
from runtimes import portable_session
from runtimes._tensorrt.lowering import lower_graph, lower_model
from toolkit.errors import StageError, UnsupportedError
from toolkit.types import ModelSpec, QuantizedGraph

SPEC = ModelSpec("tiny", "tiny", "module", "raw", "tiny", "Tiny", (), (), {})
SCOPES = {"pkg.torch.onnx.name_scopes": "['', 'encoder', 'encoder.layer.0']"}
NEUTRAL: dict[str, float | int] = {
    "scale": 0.3,
    "is_causal": 0,
    "softcap": 0.0,
    "left_window_size": -1,
    "right_window_size": -1,
}


def fused(
    inputs: dict[str, NDArray[Any]],
    *,
    order: tuple[str | None, ...] = ("query", "key", "value", "mask", "slopes"),
    dims: dict[str, tuple[int | str, ...]] | None = None,
    opset: int = 23,
    nodes: int = 1,
    **attributes: float | int,
) -> ir.Model:
    """A model of `nodes` fused attentions over the same inputs, whose results are added up."""
    values = {
        name: ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape((dims or {}).get(name, array.shape)),
        )
        for name, array in inputs.items()
    }
    given = [values.get(name) if name else None for name in order]
    while given and given[-1] is None:
        given.pop()
    made, total = [], None
    for index in range(nodes):
        node = ir.node(
            "FusedAttention",
            given,
            {**NEUTRAL, **attributes},
            domain="toolkit",
            name=f"attention_{index}",
            metadata_props=SCOPES,
        )
        node.outputs[0].name, node.outputs[0].type = f"out_{index}", values["query"].type
        made.append(node)
        if total is None:
            total = node.outputs[0]
        else:
            made.append(ir.node("Add", [total, node.outputs[0]], name=f"sum_{index}"))
            total = made[-1].outputs[0]
            total.name, total.type = f"sum_{index}", values["query"].type
    assert total is not None
    graph = ir.Graph(list(values.values()), [total], nodes=made, opset_imports={"": opset, "toolkit": 1}, name="g")
    return ir.Model(graph, ir_version=10)


def tensors(
    queries: int = 5, keys: int = 5, *, heads: tuple[int, int] = (4, 4), sizes: tuple[int, int] = (8, 8), **more: Any
) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(7)

    def draw(*shape: int) -> NDArray[Any]:
        return generator.standard_normal(shape).astype(np.float32)

    return {
        "query": draw(2, heads[0], queries, sizes[0]),
        "key": draw(2, heads[1], keys, sizes[0]),
        "value": draw(2, heads[1], keys, sizes[1]),
        **more,
    }


def run(model: ir.Model, path: Path, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
    ir.save(model, path)
    session = portable_session(path)
    (answer,) = session.run(feeds).values()
    session.close()
    return answer


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def padding(*lengths: int, total: int) -> NDArray[np.bool_]:
    return np.stack([np.arange(total) < length for length in lengths])[:, None, None, :]


RANDOM_MASK = np.random.default_rng(3).random((2, 4, 5, 7)) > 0.4
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
EMPTY_ROW = np.where(np.arange(5)[:, None] == 2, np.float32(-np.inf), np.full((1, 1, 5, 5), 0.5, np.float32))
BIAS = np.random.default_rng(4).standard_normal((1, 4, 5, 5)).astype(np.float32)

CASES: dict[str, tuple[dict[str, NDArray[Any]], dict[str, float | int]]] = {
    "plain": (tensors(), {}),
    "cross": (tensors(3, 7), {}),
    "grouped-query": (tensors(heads=(4, 2)), {}),
    "causal": (tensors(), {"is_causal": 1}),
    "causal, more keys": (tensors(3, 7), {"is_causal": 1}),
    "causal, more queries": (tensors(7, 3), {"is_causal": 1}),
    "padding": (tensors(mask=padding(5, 2, total=5)), {}),
    "padding, causal": (tensors(mask=padding(5, 2, total=5)), {"is_causal": 1}),
    "padding, an empty sample": (tensors(mask=padding(5, 0, total=5)), {}),
    "mask of every head": (tensors(5, 7, mask=RANDOM_MASK), {}),
    "mask of rank 2": (tensors(5, 7, mask=RANDOM_MASK[0, 0]), {}),
    "mask of rank 3": (tensors(5, 7, mask=RANDOM_MASK[0]), {}),
    "mask of one row, rank 2": (tensors(5, 7, mask=RANDOM_MASK[0, 0, :1]), {}),
    "bias": (tensors(mask=BIAS), {}),
    "bias, causal": (tensors(mask=BIAS), {"is_causal": 1}),
    "bias with -inf": (tensors(mask=np.where(np.eye(5, dtype=bool), np.float32(-np.inf), BIAS)), {}),
    "bias of -inf alone": (tensors(mask=EMPTY_ROW), {}),
    "bias of -inf alone, rank 2, causal": (tensors(mask=EMPTY_ROW[0, 0]), {"is_causal": 1}),
    "bias of -inf where causality leaves nothing else": (
        tensors(mask=np.where(np.arange(5) == 0, np.float32(-np.inf), BIAS)),
        {"is_causal": 1},
    ),
    "window": (tensors(9, 9), {"left_window_size": 2, "right_window_size": 1}),
    "left window, causal": (tensors(9, 9), {"left_window_size": 3, "is_causal": 1}),
    "left window, rows without keys": (tensors(9, 3), {"left_window_size": 1}),
    "right window": (tensors(9, 9), {"right_window_size": 0}),
    "window and padding": (tensors(5, 5, mask=padding(5, 2, total=5)), {"left_window_size": 1}),
    "alibi": (tensors(slopes=SLOPES), {}),
    "alibi, causal, padding": (tensors(mask=padding(5, 3, total=5), slopes=SLOPES), {"is_causal": 1}),
    "alibi and bias": (tensors(mask=BIAS, slopes=SLOPES), {}),
    "softcap": (tensors(), {"softcap": 2.0}),
    "softcap, grouped-query, causal": (tensors(heads=(4, 2)), {"softcap": 2.0, "is_causal": 1}),
    "softcap, padding": (tensors(mask=padding(5, 2, total=5)), {"softcap": 1.5}),
    "other value size": (tensors(sizes=(8, 12)), {}),
    "other value size, window": (tensors(sizes=(8, 4)), {"left_window_size": 1, "right_window_size": 1}),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_numbers_as_the_function_body(case: str, tmp_path: Path) -> None:
    feeds, attributes = CASES[case]
    canonical, lowered = fused(feeds, **attributes), fused(feeds, **attributes)
    attach_function(canonical)
    lower_model(lowered)
    assert not lowered.functions
    assert {node.domain for node in lowered.graph} == {""}
    expected = run(canonical, tmp_path / "canonical.onnx", feeds)
    np.testing.assert_allclose(run(lowered, tmp_path / "lowered.onnx", feeds), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_is_near_and_finite(case: str, tmp_path: Path) -> None:
    feeds, attributes = CASES[case]
    half = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in feeds.items()}
    canonical, lowered = fused(feeds, **attributes), fused(half, **attributes)
    attach_function(canonical)
    lower_model(lowered)
    answer = run(lowered, tmp_path / "lowered.onnx", half)
    assert answer.dtype == np.float16
    assert np.isfinite(answer).all()
    np.testing.assert_allclose(answer, run(canonical, tmp_path / "canonical.onnx", feeds), rtol=0, atol=1e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_same_numbers_as_torch(causal: bool, tmp_path: Path) -> None:
    feeds = tensors(6, 6)
    lowered = fused(feeds, is_causal=int(causal))
    lower_model(lowered)
    query, key, value = (torch.from_numpy(feeds[name]) for name in ("query", "key", "value"))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=0.3)
    np.testing.assert_allclose(run(lowered, tmp_path / "m.onnx", feeds), expected.numpy(), rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    "mask", [np.full((1, 1, 5, 5), -65504, np.float16), padding(5, 2, total=5)], ids=["float", "bool"]
)
def test_masks_leave_room_for_a_score_in_half_precision(mask: NDArray[Any]) -> None:
    """A score added to the lowest number would be -inf, and a row of those NaN."""
    model = fused({name: array.astype(np.float16) for name, array in tensors().items()} | {"mask": mask})
    lower_model(model)
    writers = [node for node in model.graph if node.op_type in ("Max", "Where")]
    given = [value.const_value for node in writers for value in node.inputs if value is not None]
    constants = [tensor.numpy() for tensor in given if tensor is not None]
    assert min(array.min() for array in constants) == np.finfo(np.float16).min / 2


def test_a_constant_bias_without_infinities_costs_nothing() -> None:
    for bias, cost in ((BIAS, 0), (EMPTY_ROW, 1)):
        model = fused(tensors(mask=bias))
        mask = model.graph.inputs.pop(-1)
        mask.const_value = ir.tensor(bias, name="mask")
        model.graph.register_initializer(mask)
        lower_model(model)
        assert ops(model).count("ReduceMax") == cost


def test_dynamic_shapes_and_a_mask_for_all_layers(tmp_path: Path) -> None:
    dims: dict[str, tuple[int | str, ...]] = dict.fromkeys(("query", "key", "value"), ("batch", 4, "sequence", 8))
    dims["mask"] = ("batch", 1, 1, "sequence")
    feeds = tensors(mask=padding(5, 2, total=5))
    canonical, lowered = (fused(feeds, dims=dims, nodes=3, is_causal=1) for _ in range(2))
    attach_function(canonical)
    lower_model(lowered)
    assert ops(lowered).count("Attention") == 3
    assert ops(lowered).count("Range") == 2
    expected = run(canonical, tmp_path / "canonical.onnx", feeds)
    np.testing.assert_allclose(run(lowered, tmp_path / "lowered.onnx", feeds), expected, rtol=0, atol=5e-6)


def test_is_causal_only_where_keys_are_as_many_as_queries() -> None:
    square: dict[str, tuple[int | str, ...]] = dict.fromkeys(("query", "key", "value"), (2, 4, "sequence", 8))
    oblong = {**square, "key": (2, 4, "keys", 8), "value": (2, 4, "keys", 8)}
    for dims, expected in ((square, 1), (oblong, 0)):
        model = fused(tensors(), dims=dims, is_causal=1)
        lower_model(model)
        (attention,) = [node for node in model.graph if node.op_type == "Attention"]
        assert attention.attributes.get_int("is_causal", 0) == expected
        assert (len(attention.inputs) > 3) != bool(expected)


def test_queries_and_keys_of_one_tensor_are_told_apart(tmp_path: Path) -> None:
    feeds = {"query": tensors()["query"]}
    canonical, lowered = (fused(feeds, order=("query", "query", "query")) for _ in range(2))
    attach_function(canonical)
    steps = lower_model(lowered)
    assert any("told apart" in step.what for step in steps)
    (attention,) = [node for node in lowered.graph if node.op_type == "Attention"]
    assert attention.inputs[0] is not attention.inputs[1]
    expected = run(canonical, tmp_path / "canonical.onnx", feeds)
    np.testing.assert_allclose(run(lowered, tmp_path / "lowered.onnx", feeds), expected, rtol=0, atol=3e-6)


def test_steps_say_which_form_was_taken() -> None:
    fused_form, products = fused(tensors(mask=padding(5, 2, total=5))), fused(tensors(), softcap=2.0)
    (step,) = lower_model(fused_form)
    assert (step.count, step.what) == (1, "attention as standard Attention")
    assert "mask" in step.reason
    (step,) = lower_model(products)
    assert "not fused" in step.what
    assert "softcap" in step.reason


def test_new_nodes_keep_the_module_path_and_outputs_their_names() -> None:
    model = fused(tensors(), is_causal=1, softcap=2.0)
    lower_model(model)
    assert all(node.metadata_props["pkg.torch.onnx.name_scopes"] for node in model.graph)
    assert [output.name for output in model.graph.outputs] == ["out_0"]


def test_an_old_opset_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="opset 18") as caught:
        lower_model(fused(tensors(), opset=18))
    assert "--opset 23" in caught.value.hint


def test_lower_graph_writes_a_file_and_keeps_the_log(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    model = fused(tensors())
    attach_function(model)
    ir.save(model, source)
    graph = QuantizedGraph(source, SPEC, (), "fp32")
    lowered = lower_graph(graph, tmp_path / "trt", "trt")
    assert lowered.path == tmp_path / "trt" / "model.onnx"
    assert (lowered.runtime, lowered.scheme, len(lowered.steps)) == ("trt", "fp32", 1)
    with pytest.raises(StageError, match="overwrite"):
        lower_graph(graph, tmp_path, "trt")


def test_a_file_that_is_no_graph_is_a_clear_error(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"not a graph")
    with pytest.raises(StageError, match="cannot read"):
        lower_graph(QuantizedGraph(source, SPEC), tmp_path / "trt", "trt")
