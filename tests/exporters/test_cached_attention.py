"""Attention that owns its cache: positions after the past, the same numbers as everything at once, windows as rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from exporters.cache import ExplicitCache
from exporters.decoder import CausalLM, past_names
from exporters.fused_attention import attach_function
from exporters.fused_attention.interface import NAME, attention_mask
from exporters.fused_attention.torch_op import cached_attention, fused_attention
from exporters.torch_export import fused
from toolkit.errors import StageError, UnsupportedError, UsageError

PAST, NEW = 7, 3
RULES: dict[str, dict[str, Any]] = {
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "left_window_size": 4},
    "softcap": {"is_causal": True, "softcap": 1.5},
    "alibi": {"is_causal": True, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    "bidirectional": {"is_causal": False, "left_window_size": 2, "right_window_size": 1},
}


def tensors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of two, ten positions."""
    torch.manual_seed(seed)
    return torch.randn(2, 4, PAST + NEW, 8), torch.randn(2, 2, PAST + NEW, 8), torch.randn(2, 2, PAST + NEW, 6)


@pytest.mark.parametrize("rule", RULES)
def test_the_last_queries_with_a_past_equal_all_at_once(rule: str) -> None:
    query, key, value = tensors()
    whole = fused_attention(query, key, value, **RULES[rule])
    output, present_key, present_value = cached_attention(
        query[:, :, PAST:], key[:, :, PAST:], value[:, :, PAST:], key[:, :, :PAST], value[:, :, :PAST], **RULES[rule]
    )
    torch.testing.assert_close(output, whole[:, :, PAST:])
    torch.testing.assert_close(present_key, key)
    torch.testing.assert_close(present_value, value)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("past", [0, PAST])
def test_the_function_body_equals_the_torch_operator(rule: str, past: int) -> None:
    query, key, value = tensors(1)
    mask = torch.ones(2, 1, 1, past + NEW, dtype=torch.bool)
    mask[1, ..., past // 2] = False
    given = {
        "query": query[:, :, :NEW], "key": key[:, :, :NEW], "value": value[:, :, :NEW], "attn_mask": mask,
        "past_key": key[:, :, NEW : NEW + past], "past_value": value[:, :, NEW : NEW + past],
    }  # fmt: skip
    settings = {"is_causal": False, "softcap": 0.0, "left_window_size": -1, "right_window_size": -1, **RULES[rule]}
    slopes = settings.pop("alibi_slopes", None)
    feeds = {**given, **({} if slopes is None else {"alibi_slopes": slopes})}
    model = one_node(feeds, {"scale": 0.3, **{name: type_of(item) for name, item in settings.items()}})
    expected = cached_attention(**given, alibi_slopes=slopes, scale=0.3, **settings)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    answers = session.run(None, {name: item.numpy() for name, item in feeds.items()})
    for actual, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(actual, wanted.numpy(), atol=1e-6)


def type_of(item: Any) -> int | float:
    return int(item) if isinstance(item, bool) else item


def one_node(feeds: dict[str, Tensor], attributes: dict[str, Any], nodes: int = 1) -> ir.Model:
    """A graph of one cached attention, and of `nodes` - 1 more without a cache."""
    names = ("query", "key", "value", "attn_mask", "alibi_slopes", "past_key", "past_value")
    values = {
        name: ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape),
            type=ir.TensorType(ir.DataType.BOOL if tensor.dtype == torch.bool else ir.DataType.FLOAT),
        )
        for name, tensor in feeds.items()
    }
    made = ir.node(
        "FusedAttention", [values.get(name) for name in names], attributes, domain="toolkit", num_outputs=3, name="n0"
    )
    others = [
        ir.node("FusedAttention", [values[name] for name in names[:3]], attributes, domain="toolkit", name=f"n{index}")
        for index in range(1, nodes)
    ]
    for index, value in enumerate([*made.outputs, *(node.outputs[0] for node in others)]):
        value.name, value.type = f"out{index}", ir.TensorType(ir.DataType.FLOAT)
    outputs = [*made.outputs, *(node.outputs[0] for node in others)]
    graph = ir.Graph(
        list(values.values()), outputs, nodes=[made, *others], opset_imports={"": 23, "toolkit": 1}, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    attach_function(model)
    return model


def test_a_graph_where_only_some_layers_have_a_cache_is_refused() -> None:
    query, key, value = tensors()
    feeds = {"query": query, "key": key, "value": value, "past_key": key, "past_value": value}
    settings = {"scale": 1.0, "is_causal": 1, "softcap": 0.0, "left_window_size": -1, "right_window_size": -1}
    with pytest.raises(UnsupportedError, match="others have none"):
        one_node(feeds, settings, nodes=2)


def test_a_past_key_without_its_values_is_refused() -> None:
    query, key, value = tensors()
    feeds = {"query": query, "key": key, "value": value, "past_key": key}
    settings = {"scale": 1.0, "is_causal": 1, "softcap": 0.0, "left_window_size": -1, "right_window_size": -1}
    with pytest.raises(UsageError, match="past value alone"):
        one_node(feeds, settings)


def test_a_deferred_cache_hands_new_keys_on_and_knows_whose_they_are() -> None:
    _, key, value = tensors()
    past, new = (key[:, :, :PAST], value[:, :, :PAST]), (key[:, :, PAST:], value[:, :, PAST:])
    joined, deferred = (ExplicitCache([past, past], deferred=flag) for flag in (False, True))
    torch.testing.assert_close(joined.update(*new, 1)[0], key)
    handed = deferred.update(*new, 1)
    assert handed[0] is new[0]
    assert deferred.claim(torch.zeros(1)) is None
    assert deferred.claim(handed[0]) is deferred.explicit[1]
    assert deferred.claim(handed[0]) is None
    assert deferred.get_mask_sizes(NEW, 0) == (PAST + NEW, 0)


def test_a_layer_whose_attention_took_no_keys_is_named() -> None:
    _, key, value = tensors()
    cache = ExplicitCache([(key, value)] * 2, deferred=True)
    with pytest.raises(StageError, match="layers 0, 1 do not attend"):
        cache.presents()


class _Config:
    sliding_window = 5


@pytest.mark.parametrize(
    ("function", "window"),
    [
        (causal_mask_function, -1),
        (sliding_window_causal_mask_function(5), 4),
        (sliding_window_causal_mask_function(6), None),
    ],
    ids=["causal", "window", "another window than the configuration's"],
)
def test_masks_under_a_cache_are_padding_and_a_rule(function: Any, window: int | None) -> None:
    _, key, value = tensors()
    padding = torch.ones(2, PAST + NEW, dtype=torch.long)
    with ExplicitCache([(key[:, :, :PAST], value[:, :, :PAST])], deferred=True).active():
        mask = attention_mask(
            2, NEW, PAST + NEW, PAST, 0, function, padding.bool(), config=_Config(), device=torch.device("cpu")
        )
    assert mask is not None
    if window is None:
        assert mask.shape == (2, 1, NEW, PAST + NEW)
    else:
        assert mask.shape == (2, 1, 1, PAST + NEW)
        assert mask._toolkit_rule.left_window == window


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    config = AutoConfig.for_model(
        "llama", vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def test_the_fused_model_equals_the_eager_one_and_last_logits_take_each_rows_last_token(llama: nn.Module) -> None:
    rows = {"input_ids": torch.randint(0, 61, (2, 6)), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    rows["position_ids"] = (rows["attention_mask"].cumsum(1) - 1).clamp(min=0)
    empty = dict.fromkeys(past_names(2), torch.zeros(2, 2, 0, 8))
    model, last = CausalLM(llama, 2), CausalLM(llama, 2, last_logits=True)
    with torch.inference_mode():
        expected = model(**rows, **empty)["logits"]
        with fused(model):
            assert llama.config._attn_implementation == NAME
            actual = model(**rows, **empty)["logits"]
        ends = last(**rows, **empty)["logits"]
    real = rows["attention_mask"].bool()
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ends[:, 0], torch.stack([expected[0, 5], expected[1, 3]]), atol=1e-5, rtol=1e-5)
