"""From torch modules and Transformers models to FusedAttention nodes: same numbers, one node an attention."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    ViTConfig,
    ViTModel,
)

from exporters.fused_attention import attach_function, attention_nodes, read
from exporters.fused_attention.interface import NAME, attention, attention_mask, register
from exporters.fused_attention.torch_op import fused_attention
from exporters.fused_attention.translation import TRANSLATIONS
from toolkit.errors import UnsupportedError

register()
SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {"image_size": 8, "patch_size": 2, "num_channels": 1}


def build(name):
    torch.manual_seed(0)
    made = {
        "bert": lambda: BertModel(BertConfig(**SMALL)),
        "vit": lambda: ViTModel(ViTConfig(**{**SMALL, **IMAGE})),
        "llama": lambda: LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=2)),
        "mistral": lambda: MistralModel(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=3)),
        "modernbert": lambda: ModernBertModel(
            ModernBertConfig(**SMALL, local_attention=4, global_attn_every_n_layers=2, pad_token_id=0)
        ),
    }
    model = made[name]().eval()
    model.config.use_cache = False
    return model


def inputs(name, length=9):
    torch.manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(3, 1, 8, 8)}
    mask = torch.ones(3, length, dtype=torch.int64)
    mask[1, 6:] = 0
    mask[2, :3] = 0
    return {"input_ids": torch.randint(3, 90, (3, length)), "attention_mask": mask}


def hidden(model, implementation, feeds):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**feeds).last_hidden_state


def real_tokens(feeds, output):
    return output[feeds["attention_mask"].bool()] if "attention_mask" in feeds else output


def to_onnx(module, tensors, dynamic, opset=22):
    """Opset 22 is the last where the exporter does not fuse rotary embeddings, which ONNX Runtime then refuses."""
    axes = tuple(dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC) for _ in tensors)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), tensors, dynamic_shapes=(axes,))
        exported = torch.onnx.export(
            program, (), dynamo=True, verbose=False, opset_version=opset, custom_translation_table=TRANSLATIONS
        )
    model = exported.model
    attach_function(model)
    return model


def run(model, *tensors):
    buffer = io.BytesIO(ir.to_proto(model).SerializeToString())
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})[0]


class Positional(nn.Module):
    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors):
        return self.model(**dict(zip(self.names, tensors, strict=True))).last_hidden_state


class Compute(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


@pytest.mark.parametrize("name", ["bert", "vit", "llama", "mistral", "modernbert"])
def test_transformers_models_agree_with_eager_attention(name):
    model, feeds = build(name), inputs(name)
    expected, actual = hidden(model, "eager", feeds), hidden(model, NAME, feeds)
    torch.testing.assert_close(real_tokens(feeds, actual), real_tokens(feeds, expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_causal_models_agree_without_a_mask(name):
    model, feeds = build(name), {"input_ids": inputs(name)["input_ids"]}
    torch.testing.assert_close(hidden(model, NAME, feeds), hidden(model, "eager", feeds), atol=1e-5, rtol=0)


def test_decoding_with_a_cache_agrees():
    model, feeds = build("llama"), {"input_ids": inputs("llama")["input_ids"]}
    expected = hidden(model, "eager", feeds)
    with torch.no_grad():
        model.set_attn_implementation(NAME)
        first = model(input_ids=feeds["input_ids"][:, :5], use_cache=True)
        for chunk in (feeds["input_ids"][:, 5:8], feeds["input_ids"][:, 8:]):
            first = model(input_ids=chunk, past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(first.last_hidden_state[:, -1], expected[:, -1], atol=1e-5, rtol=0)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "is_causal", "mask_rows"),
    [("bert", False, 1), ("vit", False, None), ("llama", True, 1), ("mistral", False, "dynamic")],
)
def test_transformers_models_export_as_one_node_a_layer(name, is_causal, mask_rows):
    model, feeds = build(name), inputs(name)
    hidden(model, NAME, feeds)
    graph = to_onnx(Positional(model, list(feeds)), tuple(feeds.values()), [0] if name == "vit" else [0, 1])
    attentions = [read(node) for node in attention_nodes(graph)]
    assert len(attentions) == SMALL["num_hidden_layers"]
    for found in attentions:
        assert found.is_causal == is_causal
        rows = found.attn_mask.shape[2] if found.attn_mask is not None else None
        assert (rows if rows is None or isinstance(rows, int) else "dynamic") == mask_rows
    other = inputs(name, length=12)
    expected, actual = hidden(model, "eager", other), torch.from_numpy(run(graph, *other.values()))
    torch.testing.assert_close(real_tokens(other, actual), real_tokens(other, expected), atol=1e-5, rtol=0)


SDPA = {
    "plain": scaled_dot_product_attention,
    "causal": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
    "bool mask": lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=q[:, :1, :, :1] > -0.5),
    "float mask": lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=q[:, :, :, :1]),
    "grouped": lambda q, k, v: scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
    "no heads": lambda q, k, v: scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0]),
    "no heads, mask": lambda q, k, v: scaled_dot_product_attention(
        q[:, 0], k[:, 0], v[:, 0], attn_mask=q[:, 0, :, :1] > -1
    ),
    "windows beside heads": lambda q, k, v: scaled_dot_product_attention(
        *(states.unflatten(2, (-1, 1)) for states in (q, k, v))
    ),
    "own operator": lambda q, k, v: fused_attention(
        q, k[:, :2], v[:, :2], alibi_slopes=torch.tensor([0.5, 0.25, 0.1, 0.0]), softcap=2.0, left_window_size=2
    ),
}


def qkv(batch, length):
    torch.manual_seed(batch)
    return tuple(torch.randn(batch, 4, length, 8) for _ in range(3))


@pytest.mark.parametrize("name", SDPA)
def test_sdpa_becomes_one_node(name):
    graph = to_onnx(Compute(SDPA[name]), qkv(2, 5), [0, 2], opset=23)
    assert len(attention_nodes(graph)) == 1
    other = qkv(3, 7)
    np.testing.assert_allclose(run(graph, *other), SDPA[name](*other).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda q, k, v: scaled_dot_product_attention(q, k, v, dropout_p=0.5), "dropout 0.5"),
        (lambda q, k, v: scaled_dot_product_attention(q[None, None], k[None, None], v[None, None]), "rank"),
        (lambda q, k, v: scaled_dot_product_attention(q[None], k[None], v[None], q[None, ..., :1] > 0), "a mask"),
    ],
)
def test_what_a_node_cannot_say_is_refused(function, message):
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        to_onnx(Compute(function), qkv(2, 5), [0])
    causes, error = [], caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__
    assert any(isinstance(cause, UnsupportedError) and message in str(cause) for cause in causes)


@pytest.mark.parametrize("extra", [{"s_aux": torch.zeros(4)}, {"dropout": 0.1}, {"output_attentions": True}])
def test_arguments_that_would_change_the_result_are_refused(extra):
    with pytest.raises(UnsupportedError, match=r"s_aux|dropout|output_attentions"):
        attention(nn.Identity(), *qkv(2, 5), None, **extra)


def test_a_position_bias_joins_the_mask_and_causality():
    query, key, value = qkv(2, 5)
    bias, mask = torch.randn(1, 4, 5, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    padding = attention_mask(2, 5, 5, attention_mask=mask)
    actual, _ = attention(nn.Identity(), query, key, value, padding, position_bias=bias)
    allowed = mask[:, None, None, :] & torch.ones(5, 5).tril().bool()
    expected = scaled_dot_product_attention(query, key, value, attn_mask=bias.masked_fill(~allowed, -torch.inf))
    torch.testing.assert_close(actual, expected.transpose(1, 2))


def test_registering_twice_changes_nothing():
    register()
    register()
    model = build("bert")
    model.set_attn_implementation(NAME)
    assert model.config._attn_implementation == NAME
