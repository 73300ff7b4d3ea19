"""The operator's torch implementation, its function body and its node reading, against a plain formula."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from exporters.fused_attention import DOMAIN, OP_TYPE, attach_function, attention_nodes, read, remove_function
from exporters.fused_attention.node import NO_MASK, NO_SLOPES
from exporters.fused_attention.torch_op import fused_attention
from toolkit.errors import UnsupportedError, UsageError

OFF = {"scale": 0.5, "is_causal": False, "softcap": 0.0, "left_window_size": -1, "right_window_size": -1}


def formula(query, key, value, attn_mask=None, alibi_slopes=None, **attributes):
    """The operator's specification, one row at a time in float64."""
    given = {**OFF, **attributes}
    group = query.shape[1] // key.shape[1]
    output = np.zeros((*query.shape[:3], value.shape[3]))
    shape = (*query.shape[:3], key.shape[2])
    mask = np.broadcast_to(np.zeros(()) if attn_mask is None else attn_mask, shape)
    for b, h, i in np.ndindex(*query.shape[:3]):
        scores = {}
        for j in range(key.shape[2]):
            score = float(query[b, h, i].astype(float) @ key[b, h // group, j].astype(float)) * given["scale"]
            score = given["softcap"] * math.tanh(score / given["softcap"]) if given["softcap"] else score
            score -= 0 if alibi_slopes is None else float(alibi_slopes[h]) * abs(i - j)
            left, right = given["left_window_size"], given["right_window_size"]
            hidden = (given["is_causal"] and j > i) or (left >= 0 and j < i - left) or (right >= 0 and j > i + right)
            if mask.dtype == bool:
                hidden = hidden or not mask[b, h, i, j]
            else:
                score += mask[b, h, i, j]
            if not hidden and score > -math.inf:
                scores[j] = score
        total = sum(math.exp(score - max(scores.values())) for score in scores.values())
        for j, score in scores.items():
            output[b, h, i] += math.exp(score - max(scores.values())) / total * value[b, h // group, j]
    return output


def graph(*nodes, shapes=True, opset=18):
    """A model whose nodes are attentions; each node is (attributes, arrays by input name)."""
    inputs, made, outputs = {}, [], []
    for number, (attributes, arrays) in enumerate(nodes):
        values = []
        for name in ("query", "key", "value", "attn_mask", "alibi_slopes"):
            array = arrays.get(name)
            if array is None:
                values.append(None)
                continue
            dims = [array.shape[axis] if axis in (1, 3) and shapes else None for axis in range(array.ndim)]
            value = ir.Value(
                name=f"{name}{number}", shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.from_numpy(array.dtype))
            )
            inputs[value] = array
            values.append(value)
        node = ir.Node(
            DOMAIN,
            OP_TYPE,
            values,
            ir.convenience.convert_attributes({**OFF, **attributes, "is_causal": int(attributes.get("is_causal", 0))}),
        )
        node.outputs[0].name, node.outputs[0].type = (
            f"output{number}",
            ir.TensorType(ir.DataType.from_numpy(arrays["query"].dtype)),
        )
        node.outputs[0].shape = ir.Shape([None] * 4)
        made.append(node)
        outputs.append(node.outputs[0])
    opsets = {"": opset, DOMAIN: 1}
    model = ir.Model(ir.Graph(list(inputs), outputs, nodes=made, opset_imports=opsets, name="g"), ir_version=10)
    return model, {value.name: array for value, array in inputs.items()}


def run(model, feeds):
    """Both runtimes; ONNX Runtime's answer after checking that the reference evaluator's is the same."""
    proto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    actual = session.run(None, feeds)
    for ours, reference in zip(actual, ReferenceEvaluator(proto).run(None, feeds), strict=True):
        np.testing.assert_allclose(ours, reference, atol=2e-3 if ours.dtype == np.float16 else 1e-5)
    return actual


def arrays(seed=0, *, heads=4, kv_heads=4, queries=5, keys=7, mask=None, alibi=False, dtype=np.float32):
    random = np.random.default_rng(seed)
    made = {
        "query": random.normal(size=(2, heads, queries, 8)).astype(dtype),
        "key": random.normal(size=(2, kv_heads, keys, 8)).astype(dtype),
        "value": random.normal(size=(2, kv_heads, keys, 6)).astype(dtype),
    }
    if mask is not None:
        kind, shape = mask
        allowed = random.random(shape) > 0.4
        allowed[..., 0, :] &= shape[-2] == 1  # the first query may attend nothing
        made["attn_mask"] = (
            allowed if kind == "bool" else np.where(allowed, random.normal(size=shape), -np.inf).astype(dtype)
        )
    if alibi:
        made["alibi_slopes"] = (2.0 ** -np.arange(1, heads + 1)).astype(dtype)
    return made


def by_torch(attributes, given):
    return fused_attention(
        **{name: torch.from_numpy(array) for name, array in given.items()}, **{**OFF, **attributes}
    ).numpy()


@st.composite
def cases(draw):
    queries, keys = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    shape = draw(st.sampled_from([(2, 1, 1, keys), (2, 4, queries, keys), (queries, keys), (4, queries, keys)]))
    kind = draw(st.sampled_from([None, "bool", "float"]))
    attributes = {
        "scale": draw(st.sampled_from([0.35, 1.0])),
        "is_causal": draw(st.booleans()),
        "softcap": draw(st.sampled_from([0.0, 1.5])),
        "left_window_size": draw(st.sampled_from([-1, 0, 2])),
        "right_window_size": draw(st.sampled_from([-1, 0, 1])),
    }
    made = arrays(
        draw(st.integers(0, 99)), kv_heads=kv_heads, queries=queries, keys=keys,
        mask=kind and (kind, shape), alibi=draw(st.booleans()),
    )  # fmt: skip
    return attributes, made


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_torch_and_function_body_follow_the_formula(case):
    attributes, made = case
    expected = formula(**made, **attributes)
    np.testing.assert_allclose(by_torch(attributes, made), expected, atol=1e-5)
    model, feeds = graph(case)
    attach_function(model)
    np.testing.assert_allclose(run(model, feeds)[0], expected, atol=1e-5)


MIXED = [
    ({"is_causal": True}, arrays(1)),
    ({"scale": 1.0, "softcap": 2.0}, arrays(2, kv_heads=2, mask=("bool", (2, 1, 1, 7)))),
    ({"left_window_size": 1, "right_window_size": 2}, arrays(3, alibi=True)),
    ({}, arrays(4, mask=("float", (2, 4, 5, 7)))),
]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("times", [1, 2])
def test_nodes_with_different_features_share_one_function(count, times):
    model, feeds = graph(*MIXED[:count])
    for _ in range(times):
        attach_function(model)
    assert [key[:2] for key in model.functions] == [(DOMAIN, OP_TYPE)]
    assert len({len(node.inputs) for node in attention_nodes(model)}) == 1
    for actual, (attributes, made) in zip(run(model, feeds), MIXED, strict=False):
        np.testing.assert_allclose(actual, formula(**made, **attributes), atol=1e-5)


def test_attaching_twice_changes_nothing():
    model, _ = graph(*MIXED)
    attach_function(model)
    once = ir.to_proto(model).SerializeToString()
    attach_function(model)
    assert ir.to_proto(model).SerializeToString() == once


def test_neutral_inputs_read_as_absent():
    model, _ = graph(*MIXED)
    attach_function(model)
    first = attention_nodes(model)[0]
    assert [value.name for value in first.inputs[3:]] == [NO_MASK, NO_SLOPES]
    attention = read(first)
    assert attention.attn_mask is None
    assert attention.alibi_slopes is None
    assert attention.is_causal


def test_layers_share_one_float_copy_of_a_mask():
    model, _ = graph(({}, arrays(1, mask=("float", (5, 7)))), ({}, arrays(2, mask=("bool", (5, 7)))), ({}, arrays(3)))
    attentions = attention_nodes(model)
    attentions[2].resize_inputs(4)
    attentions[2].replace_input_with(3, attentions[1].inputs[3])
    attach_function(model)
    assert attentions[1].inputs[3] is attentions[2].inputs[3]
    assert [node.op_type for node in model.graph].count("Where") == 1


def test_plain_attention_costs_no_extra_node():
    model, _ = graph(({"scale": 1.0}, arrays()))
    attach_function(model)
    (function,) = model.functions.values()
    assert [node.op_type for node in function] == ["Transpose", "MatMul", "Softmax", "MatMul"]
    assert not model.graph.initializers
    assert len(attention_nodes(model)[0].inputs) == 3


def test_unknown_head_counts_are_taken_for_grouped():
    made = arrays(kv_heads=2)
    model, feeds = graph(({}, made), shapes=False)
    attach_function(model)
    np.testing.assert_allclose(run(model, feeds)[0], formula(**made), atol=1e-5)


@pytest.mark.parametrize("mask", [None, ("bool", (2, 1, 1, 7)), ("float", (2, 4, 5, 7))])
def test_half_precision(mask):
    attributes = {"softcap": 3.0, "is_causal": True, "left_window_size": 2}
    made = arrays(dtype=np.float16, mask=mask, alibi=True, kv_heads=2)
    model, feeds = graph((attributes, made))
    attach_function(model)
    (actual,) = run(model, feeds)
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, formula(**made, **attributes), atol=5e-3)


def test_empty_rows_are_zero_even_where_values_are_not_finite():
    made = arrays(mask=("bool", (5, 7)))
    made["value"][:] = np.inf
    model, feeds = graph(({}, made))
    attach_function(model)
    with np.errstate(invalid="ignore"):
        assert (run(model, feeds)[0][:, :, 0] == 0).all()
    assert (by_torch({}, made)[:, :, 0] == 0).all()


def test_remove_function_waits_for_the_last_node():
    model, _ = graph(*MIXED)
    attach_function(model)
    assert not remove_function(model)
    assert model.functions
    for node in attention_nodes(model):
        node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    model.graph.remove(list(model.graph), safe=True)
    assert remove_function(model)
    assert not model.functions
    assert DOMAIN not in model.opset_imports
    assert not model.graph.initializers


def test_an_old_opset_is_refused():
    model, _ = graph(({}, arrays()), opset=17)
    with pytest.raises(UnsupportedError, match="opset 17"):
        attach_function(model)


def test_reading_another_node_or_a_broken_one_is_refused():
    with pytest.raises(UsageError, match="Softmax"):
        read(ir.Node("", "Softmax", [ir.Value(name="x")]))
    with pytest.raises(UsageError, match="has no key"):
        read(ir.Node(DOMAIN, OP_TYPE, [ir.Value(name="x")]))
    with pytest.raises(UsageError, match="'scale'"):
        read(ir.Node(DOMAIN, OP_TYPE, [ir.Value(name=name) for name in "qkv"]))


def test_reading_nodes_needs_no_torch():
    code = "import sys, exporters.fused_attention; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("extra", [{}, {"softcap": 2.0}, {"is_causal": True, "left_window_size": 1}])
def test_the_torch_operator_keeps_its_promises(extra):
    """Schema, fake kernel (shapes and strides) and dynamic shapes, as torch itself checks them."""
    query, key, value = (torch.from_numpy(array) for array in arrays(kv_heads=2).values())
    given = {**OFF, **extra}
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    torch.library.opcheck(
        torch.ops.toolkit.fused_attention.default,
        (query, key, value, mask, None, *given.values()),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
