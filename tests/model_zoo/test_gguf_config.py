"""What a GGUF file's metadata say of the model, and what `--model` makes of the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import tiny_models
import torch
from gguf import GGMLQuantizationType as Type
from huggingface_hub import constants
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model_zoo import _gguf, _loading, _resolve, _source, resolve
from toolkit import plugins
from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import ModelRequest


@pytest.fixture
def request_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the family is asked to describe, whichever family it is."""

    class Recorder:
        def describe(self, request: ModelRequest) -> ModelRequest:
            return request

    monkeypatch.setattr(plugins, "family", lambda _: Recorder())
    return resolve


def llama(path: Path, kind: Type = Type.F32, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return gguf_files.write(path, gguf_files.model("llama"), "llama", kind, **options)


@pytest.mark.parametrize("architecture", gguf_files.MODELS)
def test_the_configuration_is_that_of_the_model(architecture: str, tmp_path: Path) -> None:
    source = gguf_files.model(architecture)
    config = _gguf.config_of(gguf_files.write(tmp_path / "a.gguf", source, architecture))
    assert config["architectures"] == [type(source).__name__]
    made, wanted = _loading.make_config(config).to_dict(), source.config.to_dict()
    indifferent = {"architectures", "dtype", "_attn_implementation", "n_ctx", "initializer_range", "use_cache"}
    differing = {key: (made[key], wanted[key]) for key in made.keys() & wanted if made[key] != wanted[key]}
    assert {key: pair for key, pair in differing.items() if key not in indifferent} == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"),
        ("qwen2.5-0.5b-instruct-q8_0", "qwen2.5-0.5b-instruct"),
        ("Llama-3.2-1B-f16", "Llama-3.2-1B"),
        ("mine-IQ4_NL", "mine"),
        ("plain", "plain"),
        ("Q8_0", "Q8_0"),
    ],
)
def test_a_model_is_called_after_its_file(name: str, expected: str) -> None:
    assert _gguf.model_name(Path(f"/somewhere/{name}.gguf")) == expected


def test_a_file_and_its_folder_are_the_same_model(request_of: Any, tmp_path: Path) -> None:
    path = llama(tmp_path / "models" / "My model.Q8_0.gguf")
    (path.parent / "README.md").write_text("a model")
    for given in (path, path.parent):
        request = request_of(str(given), weights="random", seed=3)
        assert (request.name, request.source) == ("My-model", str(path))
        assert (request.config["model_type"], request.seed) == ("llama", 3)
    assert request_of(str(path)).revision is None
    with pytest.raises(UsageError, match="has no revision"):
        request_of(str(path), revision="main")


def test_a_relative_path(request_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = llama(tmp_path / "a.GGUF")
    monkeypatch.chdir(tmp_path)
    assert request_of("a.GGUF").source == str(path)


def test_a_folder_of_several(tmp_path: Path) -> None:
    first = llama(tmp_path / "a.Q4_0.gguf")
    llama(tmp_path / "a.Q8_0.gguf")
    with pytest.raises(UsageError, match=r"2 GGUF files: a\.Q4_0\.gguf, a\.Q8_0\.gguf") as caught:
        resolve(str(tmp_path))
    assert str(first) in caught.value.hint


def test_a_folder_with_config_json_is_a_folder(tmp_path: Path) -> None:
    tiny_models.bert(tmp_path)
    llama(tmp_path / "a.gguf")
    assert resolve(str(tmp_path)).family == "bert"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"there is no file 'models/a\.gguf'"):
        resolve("models/a.gguf")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"a folder or a \.gguf file"):
        resolve(str(tmp_path / "model.safetensors"))


def test_turns_and_messages_have_ends_of_their_own(tmp_path: Path) -> None:
    more = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 2}
    assert _gguf.config_of(llama(tmp_path / "a.gguf", metadata=more))["eos_token_id"] == [2, 7]
    none = {f"tokenizer.ggml.{name}_token_id": None for name in ("eos", "bos", "padding")}
    config = _gguf.config_of(llama(tmp_path / "b.gguf", metadata=none))
    assert [config[f"{name}_token_id"] for name in ("eos", "bos", "pad")] == [None, None, None]


def llama3_table(factor: float) -> np.ndarray:
    """What Llama 3's own scaling divides each frequency by, from transformers."""
    plain = {"rope_type": "default", "rope_theta": 500_000.0}
    scaled = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    config = LlamaConfig(head_dim=128, max_position_embeddings=131072, rope_parameters=scaled)
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    whole = 1 / plain["rope_theta"] ** (torch.arange(0, 128, 2) / 128)
    return (whole / found).numpy().astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama3_is_recognised(factor: float, tmp_path: Path) -> None:
    metadata = {"llama.rope.freq_base": 500_000.0}
    extra = {"rope_freqs.weight": (llama3_table(factor), None)}
    path = llama(tmp_path / "a.gguf", metadata=metadata, extra=extra)
    assert _gguf.config_of(path)["rope_parameters"] == {
        "rope_theta": 500_000.0, "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    assert "rope_freqs.weight" not in dict(_gguf.state_dict(path))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, {"rope_type": "default"}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rotary_scaling(metadata: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    named = {f"llama.{key}": value for key, value in metadata.items()}
    path = llama(tmp_path / "a.gguf", metadata=named)
    assert _gguf.config_of(path)["rope_parameters"] == {"rope_theta": 10_000.0, **expected}


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "longrope": ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, {}, r"longrope"),
    "yarn of its own": (
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0, "llama.rope.scaling.attn_factor": 0.5,
         "llama.rope.scaling.original_context_length": 32}, {}, r"attn_factor",
    ),
    "long and short factors": ({}, {"rope_factors_long.weight": (np.ones(8, np.float32), None)}, "rope_factors_long"),
    "an unknown table": ({}, {"rope_freqs.weight": (np.full(8, 3, np.float32), None)}, "neither Llama"),
    "experts": ({"llama.expert_count": 8}, {}, "mixtures of experts"),
    "half a head": ({"llama.rope.dimension_count": 8}, {}, "8 of 16 channels"),
    "layers of several sizes": ({"llama.feed_forward_length": [96, 64]}, {}, "differs from layer to layer"),
    "a tensor of another model": ({}, {"blk.0.ssm_a": (np.ones(8, np.float32), None)}, r"blk\.0\.ssm_a"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_computed_wrongly_is_refused(case: str, tmp_path: Path) -> None:
    metadata, extra, message = REFUSED[case]
    path = llama(tmp_path / "a.gguf", metadata=metadata, extra=extra)
    with pytest.raises(UnsupportedError, match=message) as caught:
        resolve(str(path))
    assert "folder with config.json" in caught.value.hint


def test_an_architecture_that_is_not_read(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="architecture 'mamba'") as caught:
        resolve(str(tmp_path / "a.gguf"))
    assert "llama, qwen2, qwen3" in caught.value.hint


@pytest.mark.parametrize("key", ["llama.embedding_length", "llama.attention.head_count", "llama.context_length"])
def test_a_value_that_is_missing_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"has no '{key}'"):
        resolve(str(llama(tmp_path / "a.gguf", metadata={key: None})))


def test_a_short_name_without_the_hub_is_what_was_fetched(
    request_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UsageError, match="--offline was given"):
        request_of("all-minilm-l6-v2", offline=True)
    models = tmp_path / "transformer-export-toolkit" / "models"
    folder = tiny_models.bert(models / "all-minilm-l6-v2")
    request = request_of("all-minilm-l6-v2", offline=True)
    assert (request.name, request.source) == ("all-minilm-l6-v2", str(folder))
    path = llama(models / "small" / "BERT-Base.Q8_0.gguf")
    request = request_of("bert-base", offline=True)
    assert (request.name, request.source) == ("bert-base", str(path))
    with pytest.raises(UsageError, match="--offline was given"):
        request_of("bert-base", offline=True, revision="main")
    assert _source.fetched("nothing-of-this-name") is None


def test_a_gguf_file_is_local(tmp_path: Path) -> None:
    path = llama(tmp_path / "a.gguf")
    assert _source.is_local(str(path))
    assert not _resolve.needs_no_files(ModelRequest("a", str(path), {}, weights="random"))


def test_reading_the_configuration_imports_no_torch(tmp_path: Path) -> None:
    path = llama(tmp_path / "a.gguf")
    code = (
        "import sys, pathlib; from model_zoo import _gguf; _gguf.config_of(pathlib.Path(sys.argv[1]));"
        "sys.exit(bool({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0
