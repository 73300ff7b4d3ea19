"""Tiny language models of random weights, exported once for all tests that lower them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from exporters.reference import TorchSession
from exporters.torch_export import export
from model_zoo import resolve
from model_zoo._decoder import without_past
from toolkit import plugins
from toolkit.continuation import with_continuations
from toolkit.types import DecoderSpec, ExportedGraph, ModelSpec, Tensors

WINDOW, LENGTH = 6, 64
TINY = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": LENGTH, "head_dim": 16,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": WINDOW},
    "gemma2": {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "sliding_window": WINDOW},
    "bloom": {"model_type": "bloom", "architectures": ["BloomForCausalLM"], "n_layer": 2, "n_head": 4},
}


class TinyDecoder:
    """A tiny model: prefills of one length and of several, chunks and single tokens behind a past, eager answers."""

    def __init__(self, name: str, folder: Path, *, last_logits: bool = False) -> None:
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text(json.dumps(TINY | MODELS[name]))
        self.spec: ModelSpec = resolve(str(folder / "model"), weights="random", last_logits=last_logits)
        assert self.spec.decoder is not None
        self.decoder: DecoderSpec = self.spec.decoder
        module = plugins.family(self.spec.family).load(self.spec)
        self.eager = TorchSession(module)
        ids = np.random.default_rng(0).integers(3, 96, (2, 3 * WINDOW))
        ragged = (np.arange(3 * WINDOW) < np.array([[9], [3 * WINDOW]])).astype(np.int64)
        prefills = [without_past(self.spec, rows, np.ones_like(rows)) for rows in (ids, ids[:1])]
        prefills.append(without_past(self.spec, ids, ragged))
        self.golden: list[Tensors] = list(with_continuations(self.eager, prefills))
        self.graph: ExportedGraph = export(module, self.spec, self.golden[3], folder / "export")
        self.expected = [self.eager.run(batch) for batch in self.golden]


MakeTiny = Callable[..., TinyDecoder]
"""(name, last_logits=False): the same object for the same arguments."""
