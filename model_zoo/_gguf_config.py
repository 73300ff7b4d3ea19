"""The values of `config.json` that a GGUF file's metadata stand for, one function an architecture.

Keys as in ggml's `docs/gguf.md`. What the graph of llama.cpp assumes of an architecture, and no key states, is written
out here rather than left to the defaults of Transformers, which are one checkpoint's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_zoo._gguf_file import GgufFile
from toolkit.errors import UnsupportedError, UsageError

__all__ = ["CONFIGS", "config_of"]

_INSTEAD = "Give the model as a Hub id or as a folder with config.json and safetensors."
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_LLAMA3 = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))
"""Factor, low and high frequency factors and original context: of Llama 3.1 and 3.3, and of Llama 3.2."""


def config_of(file: GgufFile) -> dict[str, Any]:
    """The configuration, as `config.json` would hold it. Reads metadata, and of the tensors a rotary table at most.

    Raises UnsupportedError for an architecture, a rotary scaling or a mixture of experts that is not read here,
    UsageError where a value is missing.
    """
    known = CONFIGS.get(file.architecture)
    if known is None:
        raise UnsupportedError(
            f"{file.path}: architecture '{file.architecture}' is not read from GGUF here",
            hint=f"Supported: {', '.join(CONFIGS)}. {_INSTEAD}",
        )
    if file.get("expert_count", 0):
        raise UnsupportedError(f"{file.path}: mixtures of experts are not read from GGUF here", hint=_INSTEAD)
    kind, architecture, values = known
    return {
        "model_type": kind,
        "architectures": [architecture],
        "dtype": "float32",
        "vocab_size": _embedding(file)[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_tokens(file),
        **values(file),
    }


def _tokens(file: GgufFile) -> dict[str, Any]:
    """Token ids; `eos_token_id` is a list where a turn or a message has an end of its own."""
    ids = {key: file.metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "padding_token_id", *_ENDS)}
    ends = list(dict.fromkeys(ids[key] for key in _ENDS if ids[key] is not None))
    return {
        "bos_token_id": ids["bos_token_id"],
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": ids["padding_token_id"],
    }


def _decoder(file: GgufFile) -> dict[str, Any]:
    """What all but GPT-2 have in common."""
    heads, width = file.whole("attention.head_count"), file.whole("embedding_length")
    head = file.whole("attention.key_length", width // heads)
    if not head:
        raise UsageError(f"{file.path} says {width} channels for {heads} heads", hint="Download it again.")
    return {
        "hidden_size": width,
        "intermediate_size": file.whole("feed_forward_length"),
        "num_hidden_layers": file.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.whole("attention.head_count_kv", heads),
        "head_dim": head,
        "rms_norm_eps": file.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.whole("context_length"),
        "rope_parameters": _rotary(file),
    }


def _llama(file: GgufFile) -> dict[str, Any]:
    values = _decoder(file)
    _require_whole_head(file, values["head_dim"])
    return values | {
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "hidden_act": "silu",
    }


def _qwen2(file: GgufFile) -> dict[str, Any]:
    return _decoder(file) | {"hidden_act": "silu", "use_sliding_window": False}


def _qwen3(file: GgufFile) -> dict[str, Any]:
    bias = "blk.0.attn_q.bias" in file.tensors
    return _decoder(file) | {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": bias}


def _phi3(file: GgufFile) -> dict[str, Any]:
    values = _decoder(file)
    turned = file.whole("rope.dimension_count", values["head_dim"])
    window = file.whole("attention.sliding_window", 0)
    return values | {
        "hidden_act": "silu",
        "sliding_window": window or None,
        "original_max_position_embeddings": values["max_position_embeddings"],
        "rope_parameters": values["rope_parameters"] | {"partial_rotary_factor": turned / values["head_dim"]},
    }


def _gemma(file: GgufFile) -> dict[str, Any]:
    return _decoder(file) | {"hidden_act": "gelu_pytorch_tanh"}


def _gemma2(file: GgufFile) -> dict[str, Any]:
    return _decoder(file) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": file.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.number("final_logit_softcapping", 30.0),
        "sliding_window": file.whole("attention.sliding_window", 4096),
        "query_pre_attn_scalar": _query_scale(file, largest=46),
    }


def _gemma3(file: GgufFile) -> dict[str, Any]:
    """Every sixth layer sees everything; the others turn with the base 10,000, unscaled."""
    values = _decoder(file)
    whole = values["rope_parameters"]
    if "rope.freq_base" not in _own_keys(file):
        whole = whole | {"rope_theta": 1_000_000.0}
    local = {"rope_type": "default", "rope_theta": file.number("rope.freq_base_swa", 10_000.0)}
    kinds = ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(_layers(file))]
    return values | {
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": file.number("final_logit_softcapping", 0.0) or None,
        "sliding_window": file.whole("attention.sliding_window"),
        "layer_types": kinds,
        "query_pre_attn_scalar": _query_scale(file, largest=62),
        "rope_parameters": {"full_attention": whole, "sliding_attention": local},
    }


def _gpt2(file: GgufFile) -> dict[str, Any]:
    context = file.whole("context_length")
    return {
        "n_embd": file.whole("embedding_length"),
        "n_layer": _layers(file),
        "n_head": file.whole("attention.head_count"),
        "n_inner": file.whole("feed_forward_length"),
        "n_positions": context,
        "n_ctx": context,
        "layer_norm_epsilon": file.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


CONFIGS: Mapping[str, tuple[str, str, Callable[[GgufFile], dict[str, Any]]]] = {
    "llama": ("llama", "LlamaForCausalLM", _llama),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", _qwen2),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", _qwen3),
    "phi3": ("phi3", "Phi3ForCausalLM", _phi3),
    "gemma": ("gemma", "GemmaForCausalLM", _gemma),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", _gemma2),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM", _gemma3),
    "gpt2": ("gpt2", "GPT2LMHeadModel", _gpt2),
}


def _query_scale(file: GgufFile, largest: int) -> int:
    """The 27B models, told by their number of layers, divide by their width a head, the others by the head's size."""
    heads, width = file.whole("attention.head_count"), file.whole("embedding_length")
    return width // heads if _layers(file) == largest else file.whole("attention.key_length", width // heads)


def _rotary(file: GgufFile) -> dict[str, Any]:
    theta = {"rope_theta": file.number("rope.freq_base", 10_000.0)}
    factors = [name for name in file.tensors if name.startswith("rope_f")]
    if factors == ["rope_freqs.weight"]:
        return theta | _llama3(file, theta["rope_theta"])
    older = file.number("rope.scale_linear", 0.0)
    kind = file.get("rope.scaling.type", "linear" if older else "none")
    factor = file.number("rope.scaling.factor", older or 1.0)
    if not factors and (kind == "none" or (kind in {"linear", "yarn"} and factor == 1)):
        return theta | {"rope_type": "default"}
    if not factors and kind == "linear":
        return theta | {"rope_type": "linear", "factor": factor}
    original = file.whole("rope.scaling.original_context_length", 0)
    extra = [key for key in _own_keys(file) if key.startswith("rope.scaling.yarn") or key.endswith("attn_factor")]
    if not factors and not extra and kind == "yarn" and original:
        return theta | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise UnsupportedError(
        f"{file.path}: its rotary scaling ({', '.join([str(kind), *factors, *extra])}) is not read from GGUF here",
        hint=f"Supported: none, linear, yarn, and Llama 3's. {_INSTEAD}",
    )


def _llama3(file: GgufFile, theta: float) -> dict[str, Any]:
    """Llama 3.1 stores what each frequency is divided by; find the parameters that give this very table."""
    table = file.raw(file.tensors["rope_freqs.weight"]).view(np.float32).reshape(-1)
    for factor, low, high, original in _LLAMA3:
        expected = _llama3_table(theta, len(table), factor, low, high, original)
        if np.allclose(table, expected, rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UnsupportedError(
        f"{file.path}: the table rope_freqs.weight is neither Llama 3.1's nor Llama 3.2's", hint=_INSTEAD
    )


def _llama3_table(
    theta: float, size: int, factor: float, low: float, high: float, original: int
) -> NDArray[np.float64]:
    """Long waves are divided by `factor`, short ones by 1, those between by what blends the two (Llama 3.1's rule)."""
    waves = 2 * math.pi * theta ** (np.arange(size) / size)
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _require_whole_head(file: GgufFile, head: int) -> None:
    turned = file.whole("rope.dimension_count", head)
    if turned != head:
        raise UnsupportedError(
            f"{file.path}: rotary embedding of {turned} of {head} channels is not read from a 'llama' GGUF here",
            hint=_INSTEAD,
        )


def _embedding(file: GgufFile) -> tuple[int, ...]:
    found = file.tensors.get("token_embd.weight")
    if found is None or len(found.shape) != 2:
        raise UsageError(f"{file.path} has no token embedding (token_embd.weight)", hint="Download it again.")
    return found.shape


def _layers(file: GgufFile) -> int:
    return file.whole("block_count")


def _own_keys(file: GgufFile) -> set[str]:
    prefix = f"{file.architecture}."
    return {key.removeprefix(prefix) for key in file.metadata if key.startswith(prefix)}
