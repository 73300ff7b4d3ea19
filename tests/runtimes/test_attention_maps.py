"""What graphs attend to, read from every form that lowering gives an attention."""

import numpy as np
import onnx_ir as ir
import pytest
from ort_graphs import CachedCase, Case, decoder_feeds, exported_decoder, written

from runtimes import portable_session
from runtimes.ort_cpu import RUNTIME as ORT_CPU
from runtimes.trt import RUNTIME as TRT
from toolkit.compare.attention_graph import GraphAttention
from toolkit.compare.attention_map import head_maps
from toolkit.types import TargetOptions


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return exported_decoder("llama", tmp_path_factory.mktemp("llama"))


def probabilities(path, feeds, folder):
    """The maps of each attention of a graph, by row."""
    graph = GraphAttention(path)
    assert graph.unread == {}
    calls = graph.calls(feeds, folder / "calls")
    return [[head_maps(call, row) for row in range(call.rows)] for call in calls.values()]


@pytest.mark.parametrize("runtime", [None, ORT_CPU, TRT], ids=["canonical", "ort-cpu", "trt"])
@pytest.mark.parametrize(
    "features",
    [
        {"mask": "padding"},
        {"mask": "float", "kv_heads": 2},
        {"mask": "heads-3d", "flat": False},
        {"mask": "empty-row", "causal": 1},
        {"causal": 1, "softcap": 1.5},
        {"left": 1, "right": 2, "keys": 7, "value_size": 4},
        {"alibi": True, "causal": 1, "mask": "rows"},
        {"dtype": "float16", "mask": "padding"},
    ],
    ids=str,
)
def test_values_weighted_by_the_map_are_what_the_graph_answers(features, runtime, tmp_path):
    case = Case(**features)
    graph = written(case.model(), tmp_path)
    path = runtime.lower(graph, tmp_path / "lowered").path if runtime else graph.path
    feeds = case.feeds()
    (maps,) = probabilities(path, feeds, tmp_path)
    (answer,) = portable_session(path).run(feeds).values()
    for row, each in enumerate(maps):
        value = np.float64(feeds["v" if case.flat else "vt"][row])
        if case.flat:
            value = value.reshape(case.keys, case.kv_heads, -1).transpose(1, 0, 2)
        weighted = each @ np.repeat(value, case.heads // case.kv_heads, axis=0)
        got = answer[row] if not case.flat else answer[row].reshape(case.queries, case.heads, -1).transpose(1, 0, 2)
        # TensorRT's form lets such a query see all keys and zeroes its answer behind the node.
        attends = np.ones(case.queries, bool) if runtime is not TRT else (got != 0).any(axis=(0, 2))
        tolerance = 4e-3 if case.dtype == "float16" else 2e-6
        np.testing.assert_allclose(weighted[:, attends], got[:, attends], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("past", "lengths"), [(0, None), (9, [2, 7, 1])])
@pytest.mark.parametrize(
    "features",
    [
        {},
        {"left": 3, "softcap": 2.0},
        {"alibi": True, "kv_heads": 4},
        {"rotary": "whole", "kv_heads": 1},
        {"rotary": "interleaved"},
        {"rotary": "partial", "size": 32},
        {"mask": "foreign"},
    ],
    ids=str,
)
def test_attention_with_a_cache_is_read_in_every_form(features, past, lengths, tmp_path):
    """`GroupQueryAttention`, or the standard `Attention` for a foreign mask; TensorRT's cache, joined before."""
    graph = CachedCase(**features).quantized(tmp_path)
    feeds = decoder_feeds(graph.spec, 3, 7, past, lengths)
    want = probabilities(graph.path, feeds, tmp_path / "canonical")
    for runtime in (ORT_CPU, TRT):
        name = type(runtime).__name__
        lowered = runtime.lower(graph, tmp_path / name)
        got = probabilities(lowered.path, feeds, tmp_path / f"{name}-maps")
        assert len(got) == len(want) == 2
        for layer in range(2):
            for row in range(3):
                real = (lengths or [7] * 3)[row]
                np.testing.assert_allclose(got[layer][row][:, :real], want[layer][row][:, :real], rtol=0, atol=1e-5)


def test_packed_queries_are_read(llama, tmp_path):
    """Query, key and value made by one product, as merging Linears leaves them."""
    lowered = ORT_CPU.lower(llama, tmp_path / "lowered")
    nodes = [node for node in ir.load(lowered.path).graph if node.op_type == "GroupQueryAttention"]
    assert nodes
    assert all(node.inputs[1] is None for node in nodes)
    feeds = decoder_feeds(llama.spec, 2, 5, 4)
    want = probabilities(llama.path, feeds, tmp_path / "canonical")
    got = probabilities(lowered.path, feeds, tmp_path / "maps")
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_a_cache_of_fixed_length_has_keys_that_nobody_attends_to(llama, tmp_path):
    lowered = TRT.lower(llama, tmp_path / "lowered", options=TargetOptions(cache="static"))
    feeds = decoder_feeds(llama.spec, 2, 3, 4)
    want = probabilities(llama.path, feeds, tmp_path / "canonical")
    got = probabilities(lowered.path, feeds, tmp_path / "maps")
    for layer in range(2):
        for row in range(2):
            np.testing.assert_allclose(got[layer][row][..., :7], want[layer][row], rtol=0, atol=1e-5)
            assert (got[layer][row][..., 7:] == 0).all()


@pytest.mark.parametrize(
    "features",
    [{"mask": "float"}, {"mask": "padding", "causal": 1}, {"softcap": 2.0}, {"alibi": True}, {"kv_heads": 2}],
    ids=str,
)
def test_below_the_operators_opset_its_inlined_body_is_read(features, tmp_path):
    case = Case(opset=20, **features)
    graph = written(case.model(), tmp_path)
    lowered = ORT_CPU.lower(graph, tmp_path / "lowered")
    assert "Attention" not in {node.op_type for node in ir.load(lowered.path).graph}
    (want,) = probabilities(graph.path, case.feeds(), tmp_path / "canonical")
    (got,) = probabilities(lowered.path, case.feeds(), tmp_path / "inlined")
    for one, other in zip(got, want, strict=True):
        # As with TensorRT's form: what a query without keys sees is zeroed behind the softmax.
        attends = other.sum(axis=-1) > 0
        np.testing.assert_allclose(one[attends], other[attends], rtol=0, atol=1e-6)
