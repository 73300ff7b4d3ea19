"""SmolLM2-135M-Instruct as it was published in Q4_1, where scripts/fetch_models.py has brought it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from model_zoo import _gguf, _gguf_assets, _loading, _source, packed_weights
from toolkit.types import ModelSpec

PROMPT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def path() -> Path:
    folder = _source.fetched("smollm2-135m-instruct")
    if folder is None:
        pytest.skip("smollm2 is not here: run python scripts/fetch_models.py")
    found = _gguf.find(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def spec(path: Path) -> ModelSpec:
    return ModelSpec("smollm2", "llama", "decoder", "text-generation", str(path), "LlamaForCausalLM", (), (), {})


def test_configuration(path: Path) -> None:
    config = _gguf.config_of(path)
    shape = {key: config[key] for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")}
    assert shape == {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    assert (config["vocab_size"], config["max_position_embeddings"], config["eos_token_id"]) == (49152, 8192, 2)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100_000.0}
    assert config["tie_word_embeddings"] is True


def test_packed_weights(spec: ModelSpec) -> None:
    weights = packed_weights(spec)
    assert Counter(weight.bits for weight in weights.values()) == {4: 210, 8: 2}
    assert weights["model.embed_tokens.weight"].shape == (49152, 576)
    assert weights["model.layers.29.self_attn.k_proj.weight"].shape == (192, 576)


def test_the_tokenizer_knows_chats(path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(_gguf_assets.folder(path))
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>"]) == [0, 1]
    chat = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(chat)["input_ids"]
    assert ids.count(1) == 3
    assert ids.count(2) == 2
    assert tokenizer.decode(ids) == chat
    assert tokenizer.tokenize("in  1969") == ["in", "ĠĠ", "1", "9", "6", "9"]


@pytest.mark.heavy
@torch.no_grad()
def test_the_model_answers(path: Path, spec: ModelSpec) -> None:
    tokenizer = AutoTokenizer.from_pretrained(_gguf_assets.folder(path))
    config = _loading.make_config(_gguf.config_of(path))
    model = _loading.load(LlamaForCausalLM, spec, config)
    chat = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(chat, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
