"""Lowered attention against the node's own function body: the same numbers for every feature."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ort_graphs import Case, written

from exporters.fused_attention.function import attach_function
from runtimes import portable_session
from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.attention_function import ATTENTION_MASKED
from runtimes._onnxruntime.rules.attention import lower_attention
from runtimes.ort_cpu import RUNTIME
from runtimes.ort_cuda import RUNTIME as CUDA_RUNTIME
from toolkit.errors import StageError

MASKS = ("none", "padding", "rows", "float", "float-padding", "float-2d", "heads-3d", "empty-row")


def compare(case: Case, folder, tolerance: float = 1e-5):
    graph = written(case.model(), folder)
    lowered = RUNTIME.lower(graph, folder / "lowered")
    feeds = case.feeds()
    expected, actual = portable_session(graph.path).run(feeds), portable_session(lowered.path).run(feeds)
    assert list(actual) == list(expected)
    for name, want in expected.items():
        assert np.isfinite(actual[name]).all()
        np.testing.assert_allclose(actual[name], want, rtol=0, atol=tolerance)
    return lowered


def operators(path) -> list[tuple[str, str]]:
    return [(node.domain, node.op_type) for node in ir.load(path).graph]


def attentions(path) -> list[str]:
    """The attention operators, own or standard."""
    return [kind for domain, kind in operators(path) if domain in {"", DOMAIN} and kind.startswith("Attention")]


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "heads"])
@pytest.mark.parametrize(
    "feature",
    [
        *({"mask": mask} for mask in MASKS),
        {"causal": 1},
        {"causal": 1, "mask": "padding"},
        {"softcap": 2.0},
        {"softcap": 2.0, "mask": "float"},
        {"kv_heads": 2, "mask": "rows"},
        {"kv_heads": 1},
        {"value_size": 6},
        {"left": 1},
        {"right": 0, "left": 2},
        {"left": 1, "mask": "padding"},
        {"left": 1, "mask": "float"},
        {"left": 0, "right": 0, "mask": "empty-row"},
        {"alibi": True},
        {"alibi": True, "mask": "padding", "causal": 1},
        {"alibi": True, "mask": "float", "left": 2},
        {"alibi": True, "right": 1, "kv_heads": 2, "softcap": 3.0, "mask": "rows"},
        {"keys": 7, "queries": 3, "causal": 1},
        {"keys": 3, "queries": 7, "left": 1, "causal": 1},
    ],
    ids=str,
)
def test_each_feature_equals_the_function_body(feature, flat, tmp_path):
    lowered = compare(Case(flat=flat, **feature), tmp_path)
    (kind,) = attentions(lowered.path)
    masked = {"mask", "left", "right", "alibi"} & {name for name, each in feature.items() if each != "none"}
    assert kind == ("AttentionMasked" if masked and "softcap" not in feature else "Attention")


@settings(max_examples=40, deadline=None)
@given(
    mask=st.sampled_from(MASKS),
    causal=st.integers(0, 1),
    softcap=st.sampled_from([0.0, 1.5]),
    kv_heads=st.sampled_from([1, 2, 4]),
    left=st.integers(-1, 3),
    right=st.integers(-1, 3),
    alibi=st.booleans(),
    flat=st.booleans(),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
)
def test_any_combination_equals_the_function_body(tmp_path_factory, **fields):
    compare(Case(**fields), tmp_path_factory.mktemp("case"))


def test_head_split_disappears_and_outputs_keep_their_names(tmp_path):
    lowered = compare(Case(mask="padding"), tmp_path)
    kinds = operators(lowered.path)
    assert ("", "Transpose") not in kinds
    assert ("", "Reshape") not in kinds
    model = ir.load(lowered.path)
    assert [value.name for value in model.graph.outputs] == ["y0"]
    assert [name for _, name, _ in model.functions] == [ATTENTION_MASKED]
    assert "toolkit" not in model.opset_imports


def test_layers_with_the_same_mask_share_one(tmp_path):
    lowered = compare(Case(mask="padding", layers=3), tmp_path)
    kinds = operators(lowered.path)
    assert kinds.count(("", "Expand")) == 0
    assert kinds.count((DOMAIN, ATTENTION_MASKED)) == 3
    counts = {step.what: step.count for step in lowered.steps}
    assert counts == {
        "FusedAttention -> Attention [B, S, H*D]": 3,
        "attention masks expanded": 1,
        "Attention -> toolkit.cpu::Attention": 3,
        "attention masks not expanded after all": 3,
    }


def test_heads_kept_apart_are_said_so(tmp_path):
    lowered = compare(Case(flat=False, left=1), tmp_path)
    assert {step.what: step.count for step in lowered.steps} == {
        "FusedAttention -> Attention [B, H, S, D]": 1,
        "attention masks composed": 1,
        "Attention -> toolkit.cpu::Attention": 1,
    }


def test_an_output_that_is_read_with_heads_apart_still_has_them(tmp_path):
    model = Case().model()
    attention = next(node for node in model.graph if node.op_type == "FusedAttention")
    model.graph.outputs.append(attention.outputs[0])
    graph = written(model, tmp_path)
    lowered = RUNTIME.lower(graph, tmp_path / "lowered")
    feeds = Case().feeds()
    expected, actual = portable_session(graph.path).run(feeds), portable_session(lowered.path).run(feeds)
    assert actual["a0"].shape == (2, 4, 5, 8)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=1e-5)


def test_half_precision(tmp_path):
    compare(Case(dtype="float16", mask="padding"), tmp_path, tolerance=4e-3)
    compare(Case(dtype="float16", alibi=True, left=2, causal=1), tmp_path / "bias", tolerance=4e-3)


def test_before_opset_23_the_body_is_inlined_and_the_log_says_not_fused(tmp_path):
    lowered = compare(Case(opset=22, mask="rows"), tmp_path)
    (step,) = lowered.steps
    assert step.count == 1
    assert step.reason.startswith("NOT FUSED: opset 22")


def test_opset_25_is_right_and_said_to_be_decomposed(tmp_path):
    case = Case(opset=25, mask="padding", causal=1)
    lowered = compare(case, tmp_path)
    assert "no fused kernel at opset 25" in lowered.steps[0].reason


def test_without_kernel_and_body_it_fails_by_name():
    model = Case(opset=22).model()
    model.functions.clear()
    with pytest.raises(StageError, match="1 FusedAttention nodes could not be lowered") as caught:
        lower_attention(model, Emitter(model))
    assert "--opset 23" in caught.value.hint


def test_the_module_path_stays_on_the_new_nodes(tmp_path):
    model = Case(mask="padding").model()
    node = next(node for node in model.graph if node.op_type == "FusedAttention")
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'layer.0.attention']"
    lowered = RUNTIME.lower(written(model, tmp_path), tmp_path / "lowered")
    attention = next(node for node in ir.load(lowered.path).graph if node.op_type == ATTENTION_MASKED)
    assert attention.metadata_props["pkg.torch.onnx.name_scopes"] == "['', 'layer.0.attention']"


def test_lowering_onto_the_source_is_refused(tmp_path):
    graph = written(Case().model(), tmp_path)
    source = graph.path.rename(tmp_path / "model.onnx")
    with pytest.raises(StageError, match="overwrite"):
        RUNTIME.lower(replace(graph, path=source), tmp_path)


def test_cuda_lowers_to_the_same_operator(tmp_path):
    graph = written(Case(mask="padding").model(), tmp_path)
    lowered = CUDA_RUNTIME.lower(graph, tmp_path / "lowered")
    assert lowered.runtime == "ort-cuda"
    assert ("", "Attention") in operators(lowered.path)


def test_layers_with_different_windows_get_different_masks(tmp_path):
    model = Case(layers=3, left=1).model()
    nodes = [node for node in model.graph if node.op_type == "FusedAttention"]
    nodes[1].attributes["left_window_size"] = ir.AttrInt64("left_window_size", 3)
    attach_function(model)
    graph = written(model, tmp_path)
    lowered = RUNTIME.lower(graph, tmp_path / "lowered")
    feeds = Case(layers=3).feeds()
    expected, actual = portable_session(graph.path).run(feeds), portable_session(lowered.path).run(feeds)
    for name in ("y0", "y1", "y2"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=1e-5)
    assert np.abs(expected["y0"] - expected["y1"]).max() > 0.01
    assert {step.what: step.count for step in lowered.steps}["attention masks composed"] == 2
