"""Every decoder family: one node a layer with its cache, and the eager model's logits, cached and not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from exporters.fused_attention.node import attention_nodes
from exporters.reference import TorchSession
from exporters.torch_export import export
from model_zoo import resolve
from model_zoo._decoder import without_past
from runtimes import portable_session
from toolkit import plugins
from toolkit.continuation import continued, with_continuations
from toolkit.types import ModelSpec, QuantizedGraph, Session

WINDOW = 6
SMALL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ALTERNATING = ["sliding_attention", "full_attention"]
FAMILIES: Mapping[str, dict[str, Any]] = {
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {"architectures": ["GPTNeoXForCausalLM"], "num_key_value_heads": None},
    "opt": {"architectures": ["OPTForCausalLM"], "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"architectures": ["BloomForCausalLM"], "n_layer": 2, "n_head": 4},
    "mpt": {"architectures": ["MptForCausalLM"], "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "llama": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": WINDOW},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8},
    "gemma": {"architectures": ["GemmaForCausalLM"], "head_dim": 8, "num_key_value_heads": 1},
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"], "head_dim": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING,
        "attn_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        "architectures": ["Gemma3ForCausalLM"], "head_dim": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING,
    },
    "phi3": {"architectures": ["Phi3ForCausalLM"], "sliding_window": WINDOW},
    "smollm3": {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 0]},
    "olmo2": {"architectures": ["Olmo2ForCausalLM"]},
    "granite": {"architectures": ["GraniteForCausalLM"], "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "cohere": {"architectures": ["CohereForCausalLM"], "use_qk_norm": False},
    "cohere2": {
        "architectures": ["Cohere2ForCausalLM"], "head_dim": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING,
    },
    "stablelm": {"architectures": ["StableLmForCausalLM"], "partial_rotary_factor": 0.5},
    # No file of its own: any model whose attention goes through Transformers' interface.
    "starcoder2": {"architectures": ["Starcoder2ForCausalLM"], "sliding_window": None},
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_family_matches_eager_pytorch_cached_and_uncached(kind: str, tmp_path: Path) -> None:
    spec = resolve(str(_folder(kind, tmp_path / kind)), weights="random")
    module = plugins.family(spec.family).load(spec)
    _spread(module)
    reference = TorchSession(module)
    prefills = [_tokens(spec, 2, 9), _tokens(spec, 1, 3 * WINDOW)]
    golden = [*with_continuations(reference, prefills), _long_past(reference, spec)]
    expected = [reference.run(batch)["logits"] for batch in golden]
    assert np.ptp(expected[1]) > 0.1
    # The last three of nine tokens with the first six as their past are the last three of the nine at once.
    np.testing.assert_allclose(expected[2], expected[0][:, -3:], atol=1e-5)

    graph = export(module, spec, golden[2], tmp_path / "export")

    nodes = attention_nodes(ir.load(graph.path))
    assert len(nodes) == 2
    assert all(len(node.outputs) == 3 for node in nodes)
    _compare(portable_session(graph.path), golden, expected)
    quantized = QuantizedGraph(graph.path, spec, graph.steps)
    lowered = plugins.runtime("ort-cpu").lower(quantized, tmp_path / "lowered")
    _compare(plugins.runtime("ort-cpu").session(lowered.path.parent, {"graph": lowered.path.name}), golden, expected)


def _compare(session: Session, golden: list[dict[str, Any]], expected: list[NDArray[Any]]) -> None:
    try:
        for batch, logits in zip(golden, expected, strict=True):
            np.testing.assert_allclose(session.run(batch)["logits"], logits, atol=1e-3)
    finally:
        session.close()


def _folder(kind: str, folder: Path) -> Path:
    folder.mkdir()
    config = {**SMALL, "model_type": kind, **FAMILIES[kind]}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def _spread(module: Any) -> None:
    """Transformers starts weights so near zero that a wrong mask would hardly show."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)


def _tokens(spec: ModelSpec, rows: int, length: int) -> dict[str, NDArray[Any]]:
    ids = np.random.default_rng(rows).integers(3, 61, (rows, length))
    return without_past(spec, ids, np.ones_like(ids))


def _long_past(reference: Session, spec: ModelSpec) -> dict[str, NDArray[Any]]:
    """One token after a past of three windows."""
    head = _tokens(spec, 3, 3 * WINDOW)
    ids = np.array([[5], [6], [7]])
    mask = np.ones((3, 3 * WINDOW + 1), np.int64)
    return continued(reference.run(head), ids, mask, np.full(3, 3 * WINDOW))
