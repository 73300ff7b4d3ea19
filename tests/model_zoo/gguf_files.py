"""Tiny random models as GGUF files, written the way llama.cpp's converter does, with the gguf package's own names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants
from numpy.typing import NDArray
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {**SMALL, "rms_norm_eps": 1e-5}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, SMALL),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**SMALL, "head_dim": 32}),
    "phi3": (Phi3ForCausalLM, Phi3Config, {**SMALL, "sliding_window": 5, "original_max_position_embeddings": 64}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {**SMALL, "head_dim": 32}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {**SMALL, "head_dim": 32, "sliding_window": 5,
        "query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {**SMALL, "head_dim": 32, "sliding_window": 5,
        "query_pre_attn_scalar": 32, "num_hidden_layers": 7}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4,
        "n_positions": 64, "n_inner": 96, "layer_norm_epsilon": 1e-4, **IDS}),
}  # fmt: skip
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def model(architecture: str, **changes: Any) -> PreTrainedModel:
    """Every parameter random, so that one left out or taken for another shows."""
    cls, config, values = MODELS[architecture]
    torch.manual_seed(0)
    made: PreTrainedModel = cls(config(**{**values, **changes})).eval()
    for parameter in made.parameters():
        parameter.data.normal_(0.3, 0.2) if parameter.ndim == 1 else parameter.data.normal_(0, 0.15)
    return made


def write(
    path: Path,
    source: PreTrainedModel,
    architecture: str,
    kind: Type = Type.F32,
    *,
    metadata: Mapping[str, Any] | None = None,
    tokenizer: bool = False,
    extra: Mapping[str, tuple[NDArray[Any], Type | None]] | None = None,
) -> Path:
    """Matrices are stored as `kind`, vectors as F32; `metadata` adds or replaces, and None takes away."""
    writer = gguf.GGUFWriter(path, architecture)
    values = {**_metadata(source, architecture), **(_tokenizer() if tokenizer else {}), **(metadata or {})}
    for key, value in values.items():
        _add(writer, key, value)
    for name, array in tensors(source, architecture):
        stored = kind if array.ndim == 2 and array.shape[1] % 32 == 0 else Type.F32
        plain = stored in {Type.F32, Type.F16}
        writer.add_tensor(name, quants.quantize(array, stored), raw_dtype=None if plain else stored)
    for name, (array, stored) in (extra or {}).items():
        writer.add_tensor(name, array, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(source: PreTrainedModel, architecture: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, source.config.num_hidden_layers)
    for name, parameter in source.named_parameters():
        base, _, suffix = name.rpartition(".")
        array = parameter.detach().numpy()
        if architecture == "llama" and base.endswith(("q_proj", "k_proj")):
            array = _pairs(array, source.config, query=base.endswith("q_proj"))
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        if architecture == "gpt2" and ".h." in name and array.ndim == 2:
            array = array.T
        yield f"{names.get_name(base)}.{suffix}", np.ascontiguousarray(array)


def _pairs(array: NDArray[np.float32], config: Any, *, query: bool) -> NDArray[np.float32]:
    heads = config.num_attention_heads if query else config.num_key_value_heads
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def _metadata(source: PreTrainedModel, architecture: str) -> dict[str, Any]:
    config = source.config
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
    }
    if architecture == "gpt2":
        values |= {"feed_forward_length": config.n_inner, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
    else:
        values |= _rotating(config, architecture)
    named = {f"{architecture}.{key}": value for key, value in values.items()}
    ids = {"bos": config.bos_token_id, "eos": config.eos_token_id, "padding": config.pad_token_id}
    return named | {f"tokenizer.ggml.{key}_token_id": value for key, value in ids.items()}


def _rotating(config: Any, architecture: str) -> dict[str, Any]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    values = {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if architecture in {"llama", "phi3"}:
        values["rope.dimension_count"] = int(head * (rope.get("partial_rotary_factor") or 1))
    else:
        values["attention.key_length"] = head
    if architecture in {"phi3", "gemma2", "gemma3"}:
        values["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        values["attn_logit_softcapping"] = config.attn_logit_softcapping
        values["final_logit_softcapping"] = config.final_logit_softcapping
    return values


def _tokenizer() -> dict[str, Any]:
    """Byte-level byte pairs: three special tokens, letters, digits, a blank, and a few merges."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", "Ġ", "Ċ", "H", ",", ".", "'"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "Ġ"), ("Ġ", "a"), ("1", "2")]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, *("".join(pair) for pair in merges)]
    tokens += [f"unused{number}" for number in range(96 - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        kinds[type(value)](key, value)
