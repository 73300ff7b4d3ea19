"""Attention with a cache, lowered, against the node's own function body: prefill, decode, chunks, ragged rows."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ort_graphs import CachedCase, decoder_feeds

from runtimes import portable_session
from runtimes._onnxruntime import marks
from runtimes.ort_cpu import RUNTIME
from runtimes.ort_cuda import RUNTIME as CUDA_RUNTIME

STEPS = [
    (2, 9, 0, None), (1, 1, 12, None), (3, 1, 20, None), (1, 4, 11, None), (2, 5, 7, None),
    (2, 6, 0, [3, 6]), (3, 7, 9, [2, 7, 1]),
]  # fmt: skip


def compare(case: CachedCase, folder, steps=STEPS, runtime=RUNTIME):
    graph = case.quantized(folder)
    lowered = runtime.lower(graph, folder / "lowered")
    canonical, mine = portable_session(graph.path), portable_session(lowered.path)
    for rows, count, past, lengths in steps:
        feeds = decoder_feeds(graph.spec, rows, count, past, lengths, seed=count)
        expected, actual = canonical.run(feeds), mine.run(feeds)
        assert list(actual) == list(expected)
        for row in range(rows):
            real = (lengths or [count] * rows)[row]
            for name, want in expected.items():
                # What stands behind a row's last real token means nothing.
                part = np.s_[row, :, : past + real] if name.startswith("present") else np.s_[row, :real]
                np.testing.assert_allclose(actual[name][part], want[part], rtol=0, atol=1e-5, err_msg=name)
    return lowered


def operators(lowered) -> list[str]:
    return [node.op_type for node in ir.load(lowered.path).graph]


@pytest.mark.parametrize(
    "feature",
    [
        {},
        {"kv_heads": 4},
        {"kv_heads": 1},
        {"left": 3},
        {"left": 0},
        {"softcap": 1.5, "left": 4},
        {"alibi": True},
        {"alibi": True, "left": 5},
        {"rotary": "whole"},
        {"rotary": "interleaved"},
        {"rotary": "partial", "size": 32},
        {"rotary": "whole", "left": 3, "softcap": 2.0, "kv_heads": 1},
    ],
    ids=str,
)
def test_each_feature_is_in_the_kernel(feature, tmp_path):
    lowered = compare(CachedCase(**feature), tmp_path)
    kinds = operators(lowered)
    assert kinds.count("GroupQueryAttention") == 2
    assert not {"Attention", "RotaryEmbedding", "Transpose", "Cos"} & set(kinds)
    assert ir.load(lowered.path).metadata_props[marks.IN_PLACE] == marks.ALL_ROWS


@settings(max_examples=15, deadline=None)
@given(
    kv_heads=st.sampled_from([1, 2, 4]),
    left=st.integers(-1, 8),
    softcap=st.sampled_from([0.0, 1.5]),
    alibi=st.booleans(),
    rotary=st.sampled_from(["none", "whole", "partial", "interleaved", "stretched", "query"]),
    mask=st.sampled_from(["padding", "none", "foreign"]),
    causal=st.integers(0, 1),
    rows=st.integers(1, 3),
    count=st.integers(1, 6),
    past=st.integers(0, 9),
)
def test_any_combination_equals_the_function_body(tmp_path_factory, rows, count, past, **fields):
    compare(CachedCase(size=32, layers=1, **fields), tmp_path_factory.mktemp("case"), [(rows, count, past, None)])


@pytest.mark.parametrize(
    ("feature", "reason"),
    [
        ({"rotary": "stretched"}, "depend on how far the sequence goes"),
        ({"rotary": "query"}, "only one of query and key rotates"),
        ({"rotary": "whole", "size": 8}, "multiples of 16 numbers, not 8 of 8"),
    ],
)
def test_a_rotation_that_no_table_holds_stays_outside(feature, reason, tmp_path):
    lowered = compare(CachedCase(**feature), tmp_path)
    kinds = operators(lowered)
    assert kinds.count("GroupQueryAttention") == 2
    assert "RotaryEmbedding" in kinds
    (step,) = [step for step in lowered.steps if step.what == "rotary embeddings left before it"]
    assert step.count == 2
    assert reason in step.reason
    assert marks.POSITIONS not in ir.load(lowered.path).metadata_props


@pytest.mark.parametrize(
    ("feature", "reason"),
    [
        ({"causal": 0}, "it is not causal"),
        ({"mask": "none"}, "not the padding that attention_mask gives"),
        ({"mask": "foreign"}, "not the padding that attention_mask gives"),
        ({"size": 12}, "multiple of 8"),
    ],
    ids=str,
)
def test_what_the_kernel_cannot_do_goes_to_the_standard_operator(feature, reason, tmp_path):
    lowered = compare(CachedCase(**feature), tmp_path)
    kinds = operators(lowered)
    assert kinds.count("Attention") == 2
    assert "GroupQueryAttention" not in kinds
    (step,) = [step for step in lowered.steps if step.what == "not lowered to GroupQueryAttention"]
    assert reason in step.reason
    assert marks.IN_PLACE not in ir.load(lowered.path).metadata_props


@pytest.mark.parametrize(
    "feature", [{}, {"left": 3, "softcap": 2.0}, {"alibi": True}, {"causal": 0, "left": 2}], ids=str
)
def test_the_standard_operator_with_a_cache_is_right_too(feature, tmp_path):
    lowered = compare(CachedCase(rotary="whole", **feature), tmp_path, runtime=CUDA_RUNTIME)
    assert operators(lowered).count("Attention") == 2


def test_rotary_tables_are_shared_and_as_long_as_the_spec_says(tmp_path):
    model = ir.load(compare(CachedCase(rotary="whole", layers=3), tmp_path).path)
    tables = {node.inputs[7].name for node in model.graph if node.op_type == "GroupQueryAttention"}
    assert len(tables) == 1
    assert list(model.graph.initializers[tables.pop()].shape) == [64, 8]
    assert model.metadata_props[marks.POSITIONS] == "64"


def test_the_module_path_stays_and_lengths_are_computed_once(tmp_path):
    case = CachedCase(layers=3)
    model = case.model()
    for index, node in enumerate(node for node in model.graph if node.op_type == "FusedAttention"):
        node.metadata_props["pkg.torch.onnx.name_scopes"] = f"['', 'layer.{index}.attention']"
    graph = case.quantized(tmp_path)
    ir.save(model, graph.path)
    nodes = list(ir.load(RUNTIME.lower(graph, tmp_path / "lowered").path).graph)
    fused = [node for node in nodes if node.op_type == "GroupQueryAttention"]
    paths = [node.metadata_props["pkg.torch.onnx.name_scopes"] for node in fused]
    assert paths == [f"['', 'layer.{index}.attention']" for index in range(3)]
    assert sum(node.op_type == "ReduceSum" for node in nodes) == 2
