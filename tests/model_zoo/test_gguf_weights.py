"""Weights out of GGUF files: equal to the model they were written from, to ggml's arithmetic, and to transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from model_zoo import _gguf, _loading, packed_weights
from toolkit.errors import UsageError
from toolkit.types import ModelSpec, PackedWeight

TYPES = ["F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def spec_of(path: Path, **changes: Any) -> ModelSpec:
    return ModelSpec("x", "x", "decoder", "text-generation", str(path), "X", (), (), {}, **changes)


def load(path: Path, cls: Any, **options: Any) -> PreTrainedModel:
    config = _loading.make_config(_gguf.config_of(path))
    return _loading.load(cls, spec_of(path), config, **options)


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Over more tokens than any sliding window here holds."""
    return model(torch.arange(24).reshape(2, 12) % 90 + 3, use_cache=False).logits


@pytest.mark.parametrize("architecture", gguf_files.MODELS)
def test_an_fp32_file_is_the_model_it_was_written_from(architecture: str, tmp_path: Path) -> None:
    source = gguf_files.model(architecture)
    source.config._attn_implementation = "eager"
    path = gguf_files.write(tmp_path / "a.gguf", source, architecture)
    found, wanted = dict(_gguf.state_dict(path)), dict(source.named_parameters())
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name].detach(), rtol=0, atol=2e-7, msg=name)
    made = load(path, type(source))
    assert not made.training
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
    assert made.config._attn_implementation == "eager"
    torch.testing.assert_close(logits(made), logits(source), rtol=1e-5, atol=1e-5)


def transformers_reads(path: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    read: dict[str, torch.Tensor] = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    return read


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_equals_transformers(kind: str, tmp_path: Path) -> None:
    source = gguf_files.model("llama", tie_word_embeddings=kind == "Q4_0")
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama", Type[kind], tokenizer=True)
    expected = transformers_reads(path, source)
    found = dict(_gguf.state_dict(path))
    assert found.keys() == expected.keys()
    assert [name for name in found if not found[name].equal(expected[name])] == []
    made = dict(load(path, LlamaForCausalLM).named_parameters())
    assert [name for name in made if not made[name].equal(expected[name])] == []


@pytest.mark.parametrize("architecture", sorted(gguf_files.MODELS.keys() - {"llama", "gemma"}))
def test_quantized_architectures_equal_transformers(architecture: str, tmp_path: Path) -> None:
    source = gguf_files.model(architecture)
    path = gguf_files.write(tmp_path / "a.gguf", source, architecture, Type.Q8_0, tokenizer=True)
    expected = transformers_reads(path, source)
    found = dict(_gguf.state_dict(path))
    assert found.keys() == expected.keys()
    assert [name for name in found if not found[name].equal(expected[name])] == []


def unpacked(weight: PackedWeight) -> torch.Tensor:
    codes, scale, offset = weight.codes(), weight.scale(), weight.offset()
    assert (codes.dtype, scale.dtype, offset.dtype) == (np.uint8, np.float32, np.float32)
    assert codes.shape == weight.shape
    assert scale.shape == offset.shape == (weight.shape[0], weight.shape[1] // weight.block_size)
    assert codes.max() < 2**weight.bits
    blocks = codes.reshape(*scale.shape, weight.block_size) * scale[..., None] + offset[..., None]
    return torch.from_numpy(blocks.reshape(weight.shape))


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_packed_weights_have_the_bits_of_the_dequantized_ones(kind: str, bits: int, tmp_path: Path) -> None:
    source = gguf_files.model("llama")
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama", Type[kind])
    weights = packed_weights(spec_of(path))
    wanted = {name: tensor for name, tensor in _gguf.state_dict(path) if tensor.ndim == 2}
    assert weights.keys() == wanted.keys()
    assert {weight.bits for weight in weights.values()} == {bits}
    for name, weight in weights.items():
        assert unpacked(weight).equal(wanted[name]), name


def test_a_tied_projection_has_both_names(tmp_path: Path) -> None:
    source = gguf_files.model("llama", tie_word_embeddings=True)
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama", Type.Q8_0)
    weights = packed_weights(spec_of(path))
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]
    made = load(path, LlamaForCausalLM)
    assert made.lm_head.weight is made.model.embed_tokens.weight


def test_the_weights_of_a_conv1d_are_packed_as_a_linear_has_them(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", gguf_files.model("gpt2"), "gpt2", Type.Q4_1)
    weight = packed_weights(spec_of(path))["transformer.h.1.attn.c_attn.weight"]
    assert weight.shape == (192, 64)
    assert unpacked(weight).T.equal(dict(_gguf.state_dict(path))["transformer.h.1.attn.c_attn.weight"])


@pytest.mark.parametrize("kind", ["F32", "F16", "Q5_0", "Q5_1"])
def test_what_no_engine_reads_as_it_is_is_not_carried_over(kind: str, tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", gguf_files.model("llama"), "llama", Type[kind])
    assert packed_weights(spec_of(path)) == {}


def test_other_sources_and_random_weights_have_none(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", gguf_files.model("llama"), "llama", Type.Q8_0)
    assert packed_weights(spec_of(path, weights="random")) == {}
    assert packed_weights(spec_of(tmp_path)) == {}
    assert packed_weights(spec_of(Path("org/name"))) == {}


def test_many_rows_are_decoded_alike(tmp_path: Path) -> None:
    """More rows than are decoded at a time, in another order than they are stored."""
    source = gguf_files.model("llama", num_attention_heads=32, num_key_value_heads=8, head_dim=64)
    head = {"llama.attention.key_length": 64}
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama", Type.Q8_0, metadata=head)
    found = dict(_gguf.state_dict(path))["model.layers.0.self_attn.q_proj.weight"]
    wanted = source.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    assert found.shape == (2048, 64)
    np.testing.assert_array_equal(found, quants.dequantize(quants.quantize(wanted, Type.Q8_0), Type.Q8_0))


def test_a_headless_class_takes_the_body(tmp_path: Path) -> None:
    source = gguf_files.model("llama")
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama")
    found = load(path, LlamaModel, ignore=("lm_head.",))
    assert found.layers[1].mlp.up_proj.weight.equal(source.model.layers[1].mlp.up_proj.weight)
    with pytest.raises(UsageError, match=r"does not use: lm_head\.weight"):
        load(path, LlamaModel)


def test_nan_is_named(tmp_path: Path) -> None:
    source = gguf_files.model("llama")
    source.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama")
    with pytest.raises(UsageError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' holds NaN"):
        load(path, LlamaForCausalLM)


def test_a_file_with_fewer_tensors_than_layers(tmp_path: Path) -> None:
    source = gguf_files.model("llama")
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama", metadata={"llama.block_count": 3})
    with pytest.raises(UsageError, match=r"lacks 9 of the model's weights: model\.layers\.2\."):
        load(path, LlamaForCausalLM)


def test_a_file_whose_shapes_are_not_what_its_metadata_says(tmp_path: Path) -> None:
    source = gguf_files.model("llama")
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama", metadata={"llama.feed_forward_length": 128})
    with pytest.raises(UsageError, match=r"another shape .* \[64, 96\] for \[64, 128\]"):
        load(path, LlamaForCausalLM)


def test_random_weights_need_the_metadata_only(tmp_path: Path) -> None:
    source = gguf_files.model("llama")
    path = gguf_files.write(tmp_path / "a.gguf", source, "llama")
    config = _loading.make_config(_gguf.config_of(path))
    made = _loading.load(LlamaForCausalLM, spec_of(path, weights="random", seed=1), config)
    assert not made.lm_head.weight.equal(source.lm_head.weight)
