"""ONNX's own node tests for Attention, run on the function body through the reference evaluator and ONNX Runtime."""

from __future__ import annotations

import warnings
from functools import cache

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

from exporters.fused_attention import attach_function

# Pinned so that a case cannot vanish; measured with onnx 1.23, where two of them are bfloat16.
COVERED = 40


@cache
def _cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases("Attention")
    names = (case for case in cases if case.name.startswith("test_attention_"))
    return {case.name: case for case in names if not case.name.endswith("_expanded")}


def _inputs(case):
    """Input arrays by the operator's own input names."""
    formal = ("query", "key", "value", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
    given = [name for name, actual in zip(formal, case.model.graph.node[0].input, strict=False) if actual]
    return dict(zip(given, case.data_sets[0][0], strict=True))


def _attributes(case):
    return {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in case.model.graph.node[0].attribute
    }


def _why_not_covered(case) -> str:
    inputs, attributes = _inputs(case), _attributes(case)
    if inputs["query"].ndim != 4:
        return "3-D inputs"
    if "nonpad_kv_seqlen" in inputs:
        return "lengths beside the mask"
    if len(case.model.graph.node[0].output) > 3:
        return "scores as an output"
    if "softmax_precision" in attributes:
        return "softmax precision"
    if "attn_mask" in inputs and inputs["attn_mask"].ndim < 2:
        return "rank-1 mask"
    return ""


def _covered():
    return [name for name, case in _cases().items() if not _why_not_covered(case)]


def _model(case):
    """The case with its Attention node rewritten as ours."""
    inputs, given = _inputs(case), _attributes(case)
    attributes = {
        "scale": float(given.get("scale", 1 / np.sqrt(inputs["query"].shape[-1]))),
        "is_causal": given.get("is_causal", 0),
        "softcap": float(given.get("softcap", 0.0)),
        "left_window_size": given.get("left_window_size", -1),
        "right_window_size": given.get("right_window_size", -1),
    }
    dtype = onnx.helper.np_dtype_to_tensor_dtype
    outputs = ["output", "present_key", "present_value"] if "past_key" in inputs else ["output"]
    order = ["query", "key", "value", "attn_mask", "", "past_key", "past_value"]
    taken = [name if name in inputs else "" for name in order[: 7 if "past_key" in inputs else len(inputs)]]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("FusedAttention", taken, outputs, domain="toolkit", **attributes)],
        case.name,
        [onnx.helper.make_tensor_value_info(name, dtype(array.dtype), array.shape) for name, array in inputs.items()],
        [onnx.helper.make_tensor_value_info(name, dtype(inputs["query"].dtype), [None] * 4) for name in outputs],
    )
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("toolkit", 1)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    attach_function(model)
    return ir.to_proto(model)


def _compare(case, answers):
    # A case may leave the presents unnamed: then there is nothing to hold ours against.
    for actual, expected in zip(answers, case.data_sets[0][1], strict=False):
        _compare_one(case, actual, expected)


def _compare_one(case, actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    # Half types: one unit in the last place, since we scale the query where the reference scales both factors.
    half = {np.dtype(np.float16): 1e-3, np.dtype(ml_dtypes.bfloat16): 8e-3}
    tolerance = half.get(expected.dtype, 0)
    np.testing.assert_allclose(
        actual.astype(np.float64),
        expected.astype(np.float64),
        rtol=max(case.rtol, tolerance),
        atol=max(1e-6, tolerance),
    )


def test_no_covered_case_vanishes():
    assert len(_covered()) == COVERED


@pytest.mark.parametrize("name", _covered())
def test_reference_evaluator_agrees(name):
    case = _cases()[name]
    _compare(case, ReferenceEvaluator(_model(case)).run(None, _inputs(case)))


@pytest.mark.parametrize("name", _covered())
def test_onnxruntime_agrees(name):
    case = _cases()[name]
    if _inputs(case)["query"].dtype == ml_dtypes.bfloat16:
        pytest.skip("ONNX Runtime's CPU provider has no bfloat16 kernel for Mul")
    session = onnxruntime.InferenceSession(_model(case).SerializeToString(), providers=["CPUExecutionProvider"])
    _compare(case, session.run(None, _inputs(case)))
