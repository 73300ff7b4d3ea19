"""Causal language models as families describe and feed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_zoo import resolve
from toolkit import plugins
from toolkit.continuation import TokenByToken, with_continuations
from toolkit.errors import UnsupportedError, UsageError
from toolkit.greedy import Greedy
from toolkit.types import Dim, ModelSpec, Session

TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "eos_token_id": [2, 5], "bos_token_id": 1,
}  # fmt: skip


def describe(folder: Path, config: dict[str, Any] | None = None, **options: Any) -> ModelSpec:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TINY, **(config or {})}))
    return resolve(str(folder), weights="random", **options)


def session(spec: ModelSpec) -> Session:
    from exporters.reference import TorchSession

    return TorchSession(plugins.family(spec.family).load(spec))


def test_the_spec_names_the_cache_and_the_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "pad_token_id": 0}))
    spec = describe(tmp_path / "m")
    assert spec.decoder is not None
    assert (spec.decoder.layers, spec.decoder.vocabulary, spec.decoder.context) == (2, 300, 512)
    assert (spec.decoder.eos, spec.decoder.bos, spec.decoder.pad) == ((7,), 1, 0)
    assert [tensor.name for tensor in spec.inputs][:4] == [
        "input_ids", "attention_mask", "position_ids", "past_key_values.0.key",
    ]  # fmt: skip
    assert spec.inputs[-1].shape == ("batch", 2, "past_sequence", 8)
    assert spec.outputs[0].shape == ("batch", "sequence", 300)
    assert spec.dims["total_sequence"].max == 512


def test_last_logits_are_one_row_and_a_shorter_text_fed_in_one_batch(tmp_path: Path) -> None:
    spec = describe(tmp_path / "m", last_logits=True)
    assert spec.outputs[0].shape == ("batch", 1, 300)
    evaluation = plugins.family(spec.family).evaluation(spec)
    assert evaluation is not None
    assert [batch["input_ids"].shape for batch in evaluation.batches] == [(4, 128)]


def test_a_longer_context_is_asked_for_by_dim(tmp_path: Path) -> None:
    config = {"max_position_embeddings": 32768}
    assert describe(tmp_path / "m", config).dims["total_sequence"].max == 8192
    wide = describe(tmp_path / "m", config, dims={"total_sequence": Dim(1, 128, 32768)})
    assert (wide.dims["total_sequence"].max, wide.dims["past_sequence"].max) == (32768, 32768)
    with pytest.raises(UsageError, match="takes at most 512"):
        describe(tmp_path / "m", dims={"total_sequence": Dim(1, 128, 1024)})


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="'LlamaModel' has no language-model head"):
        describe(tmp_path / "m", {"architectures": ["LlamaModel"]})


def test_golden_prefills_have_continuations_that_agree_with_the_whole(tmp_path: Path) -> None:
    spec = describe(tmp_path / "m")
    model = session(spec)
    golden = with_continuations(model, plugins.family(spec.family).golden(spec))
    pasts = [batch["past_key_values.0.key"].shape[2] for batch in golden]
    assert [batch["input_ids"].shape for batch in golden] == [(2, 8), (1, 16), (3, 7), (2, 3), (1, 1)]
    assert pasts == [0, 0, 0, 5, 15]
    assert golden[2]["attention_mask"].sum(axis=1).tolist() == [7, 3, 5]
    whole, rest = model.run(golden[0])["logits"], model.run(golden[3])["logits"]
    np.testing.assert_allclose(rest, whole[:, 5:], atol=1e-5)


def test_token_by_token_equals_all_at_once(tmp_path: Path) -> None:
    full, last = session(describe(tmp_path / "m")), session(describe(tmp_path / "m", last_logits=True))
    spec = describe(tmp_path / "m")
    ragged = plugins.family(spec.family).golden(spec)[2]
    real = ragged["attention_mask"].astype(bool)
    expected, got = full.run(ragged)["logits"], TokenByToken(last).run(ragged)["logits"]
    np.testing.assert_allclose(got[real], expected[real], atol=1e-5)


def test_greedy_text_agrees_with_itself_and_leaves_room(tmp_path: Path) -> None:
    from toolkit.generation.session_decoder import SessionDecoder

    spec = describe(tmp_path / "m", {"max_position_embeddings": 32})
    model = session(spec)
    greedy = Greedy.of(model, spec, plugins.family(spec.family).golden(spec))
    assert greedy is not None
    assert greedy.tokens.shape == (2, 24)
    assert spec.decoder is not None
    decoder = SessionDecoder(model, spec.inputs, spec.decoder, limit=greedy.positions, rows=2)
    assert greedy.compare(decoder).agreement == 1.0


@pytest.mark.parametrize("kind", ["bloom", "mpt"])
def test_swapped_attention_answers_as_the_original_did(kind: str, tmp_path: Path) -> None:
    import torch

    from exporters.torch_export import fused

    sizes = {"n_layer": 2, "n_head": 4} if kind == "bloom" else {"n_layers": 2, "n_heads": 4, "d_model": 32}
    names = {"bloom": "BloomForCausalLM", "mpt": "MptForCausalLM"}
    spec = describe(tmp_path / "m", {"model_type": kind, "architectures": [names[kind]], "max_seq_len": 64, **sizes})
    module = plugins.family(spec.family).load(spec)
    batch = {name: torch.from_numpy(array) for name, array in plugins.family(spec.family).golden(spec)[0].items()}
    with torch.inference_mode():
        expected = module(**batch)["logits"]
        with fused(module):
            got = module(**batch)["logits"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"num_key_value_heads": 1}, {}], ids=["one key/value head", "one row"])
def test_the_export_gets_a_sample_without_sizes_that_would_be_constants(options: Any, tmp_path: Path) -> None:
    from toolkit.graphs import sample_of

    dims = {} if options else {"batch": Dim(1, 1, 1)}
    spec = describe(tmp_path / "m", options, dims=dims)
    golden = with_continuations(session(spec), plugins.family(spec.family).golden(spec))
    sample = sample_of(golden, spec)
    assert sample["past_key_values.0.key"].shape[2] == 5
    assert sample["input_ids"].shape[1] == 3
