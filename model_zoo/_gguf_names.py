"""From the tensors of a GGUF file to the parameters of a Transformers model: names, row order, and what was changed.

Names as in ggml's `gguf-py/gguf/constants.py`; the changes that llama.cpp's converter made to values are undone here:
Llama's query and key rows stand in the order of the other rotary convention, Gemma's norms carry their 1 already, and
GPT-2's Conv1D weights are transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_zoo._gguf_file import GgufFile, TensorInfo
from toolkit.errors import UnsupportedError, UsageError

__all__ = ["ARCHITECTURES", "Stored", "stored"]

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QUERY_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_PHI3 = {key: _BLOCK[key] for key in ("attn_norm", "attn_output", "ffn_norm", "ffn_down")}
_PHI3 |= {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_GEMMA2 = _BLOCK | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@dataclass(frozen=True, slots=True)
class Naming:
    """An architecture's names: outside the blocks, inside one, and what Transformers calls the list of blocks."""

    block: Mapping[str, str]
    outer: Mapping[str, str]
    layers: str = "model.layers"
    rotated: bool = False
    shifted_norms: bool = False
    transposed: bool = False


ARCHITECTURES = {
    "llama": Naming(_BLOCK, _OUTER, rotated=True),
    "qwen2": Naming(_BLOCK, _OUTER),
    "qwen3": Naming(_BLOCK | _QUERY_NORM, _OUTER),
    "phi3": Naming(_PHI3, _OUTER),
    "gemma": Naming(_BLOCK, _OUTER, shifted_norms=True),
    "gemma2": Naming(_GEMMA2, _OUTER, shifted_norms=True),
    "gemma3": Naming(_GEMMA2 | _QUERY_NORM, _OUTER, shifted_norms=True),
    "gpt2": Naming(_GPT2, _GPT2_OUTER, layers="transformer.h", transposed=True),
}
_ROTARY = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Stored:
    """A parameter and where it comes from.

    `order` is the row of the file that each row is taken from, `shift` is added to the values, and `transposed` says
    that the parameter is [K, N] where the file has [N, K].
    """

    name: str
    info: TensorInfo
    order: NDArray[np.intp] | None = None
    shift: float = 0.0
    transposed: bool = False


def stored(file: GgufFile) -> Iterator[Stored]:
    """Every parameter that the file holds, by its Transformers name.

    Raises UnsupportedError for a tensor that the architecture is not known to have. The factors of Llama 3's rotary
    embedding are left out: they belong to the configuration.
    """
    naming = ARCHITECTURES[file.architecture]
    for info in file.tensors.values():
        if info.name != _ROTARY:
            yield _stored(file, naming, info)


def _stored(file: GgufFile, naming: Naming, info: TensorInfo) -> Stored:
    name = _name(naming, info.name)
    if name is None:
        raise UnsupportedError(
            f"{file.path}: tensor '{info.name}' is none that a model of architecture '{file.architecture}' is known "
            "to have",
            hint="Give the model as a Hub id or as a folder with config.json and safetensors.",
        )
    matrix = len(info.shape) == 2
    return Stored(
        name,
        info,
        order=_rotary_order(file, info) if naming.rotated else None,
        shift=-1.0 if naming.shifted_norms and name.endswith("norm.weight") else 0.0,
        transposed=naming.transposed and matrix and name.startswith(f"{naming.layers}."),
    )


def _name(naming: Naming, name: str) -> str | None:
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None:
        return None
    block, part, suffix = found.groups()
    inner = (naming.outer if block is None else naming.block).get(part)
    if inner is None:
        return None
    return f"{inner}.{suffix}" if block is None else f"{naming.layers}.{block}.{inner}.{suffix}"


def _rotary_order(file: GgufFile, info: TensorInfo) -> NDArray[np.intp] | None:
    """Transformers turns the halves of a head, ggml's Llama neighbouring pairs: pair i is rows i and i + D/2."""
    part = info.name.split(".")[-2]
    if part not in {"attn_q", "attn_k"}:
        return None
    query = file.whole("attention.head_count")
    heads = query if part == "attn_q" else file.whole("attention.head_count_kv", query)
    size = info.shape[0]
    if not heads or size % (2 * heads):
        raise UsageError(f"{file.path}: '{info.name}' has {size} rows for {heads} heads", hint="Download it again.")
    return np.arange(size).reshape(heads, size // heads // 2, 2).swapaxes(1, 2).reshape(-1)
