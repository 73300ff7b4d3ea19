"""The tokenizer and configuration that a GGUF file holds become the files that an app needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf_files
import platformdirs
import pytest
from gguf import GGMLQuantizationType as Type
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from model_zoo import _gguf_assets, _gguf_file, _loading, _source
from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import ModelSpec

FILES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(platformdirs.user_cache_dir("transformer-export-toolkit")) / "gguf"


def write(folder: Path, **options: Any) -> Path:
    return gguf_files.write(
        folder / "Mine.Q8_0.gguf", gguf_files.model("llama"), "llama", Type.Q8_0, **{"tokenizer": True, **options}
    )


def test_the_files_of_a_model(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path)
    spec = ModelSpec("x", "x", "decoder", "text-generation", str(path), "X", (), (), {})
    files = _loading.asset_files(spec)
    assert {file.name for file in files} == FILES
    assert {file.parent.parent for file in files} == {cache}
    assert files[0].parent.name.startswith("Mine-")
    assert AutoConfig.from_pretrained(files[0].parent).num_key_value_heads == 2
    generation = GenerationConfig.from_pretrained(files[0].parent)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)
    assert _source.files(str(path), revision=None, offline=True) == files[0].parent


def test_the_tokenizer_goes_round(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(_gguf_assets.folder(write(tmp_path)))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|endoftext|>",
    )  # fmt: skip
    assert tokenizer.model_max_length == 64
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hello,  a 12"}], tokenize=False)
    assert chat == "<|im_start|>user\nHello,  a 12<|im_end|>\n"
    ids = tokenizer(chat)["input_ids"]
    assert (ids[0], ids[-2]) == (1, 2)
    assert tokenizer.decode(ids) == chat


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("smollm", ["ĠĠ", "1", "2"]), ("gpt-2", ["Ġ", "Ġ", "12"]), ("llama-bpe", ["Ġ", "Ġ", "12"])],
)
def test_text_is_cut_the_way_the_file_names(name: str, tokens: list[str], tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.pre": name}
    tokenizer = AutoTokenizer.from_pretrained(_gguf_assets.folder(write(tmp_path, metadata=metadata)))
    assert tokenizer.tokenize("  12") == tokens


def test_a_cut_that_is_not_known_is_refused(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path, metadata={"tokenizer.ggml.pre": "nonesuch"})
    with pytest.raises(UnsupportedError, match="pre-tokenizer 'nonesuch'") as caught:
        _gguf_assets.folder(path)
    assert "beside the file" in caught.value.hint
    assert list(cache.iterdir()) == [], "nothing half made may stay"


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot be converted"):
        _gguf_assets.folder(write(tmp_path, metadata={"tokenizer.ggml.model": "nonesuch"}))


def test_it_is_made_once_for_each_header(tmp_path: Path) -> None:
    path = write(tmp_path)
    made = _gguf_assets.folder(path)
    before = {file.name: file.stat().st_mtime_ns for file in made.iterdir()}
    assert _gguf_assets.folder(path) == made
    assert {file.name: file.stat().st_mtime_ns for file in made.iterdir()} == before
    other = write(tmp_path, metadata={"tokenizer.chat_template": "other"})
    _gguf_file._read.cache_clear()
    assert _gguf_assets.folder(other) != made


def test_a_tokenizer_beside_the_file_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path, metadata={"tokenizer.ggml.pre": "nonesuch"})
    (tmp_path / "tokenizer.json").write_text('{"mine": 1}')
    made = _gguf_assets.folder(path)
    assert json.loads((made / "tokenizer.json").read_text()) == {"mine": 1}
    (tmp_path / "tokenizer.json").write_text('{"mine": 2}')
    assert json.loads((_gguf_assets.folder(path) / "tokenizer.json").read_text()) == {"mine": 2}


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    made = _gguf_assets.folder(write(tmp_path, tokenizer=False))
    assert {file.name for file in made.iterdir()} == {"config.json", "generation_config.json"}


def test_what_lies_around_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("no JSON at all")
    (tmp_path / "special_tokens_map.json").write_text("nor this")
    assert {file.name for file in _gguf_assets.folder(write(tmp_path)).iterdir()} == FILES


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot write the tokenizer") as caught:
        _gguf_assets.folder(write(tmp_path))
    assert "XDG_CACHE_HOME" in caught.value.hint


WITHOUT = """
import pathlib, sys
sys.modules["gguf"] = None
from model_zoo import _gguf, _gguf_assets
from toolkit.errors import MissingDependencyError
path = pathlib.Path(sys.argv[1])
assert _gguf.config_of(path)
assert len(list(_gguf.state_dict(path))) == 21
try:
    assert (_gguf_assets.folder(path) / "tokenizer.json").is_file()
except MissingDependencyError as error:
    assert "pip install" in error.hint
"""


def test_without_the_gguf_package(tmp_path: Path) -> None:
    """Configuration and weights need it never, the tokenizer only with some versions of transformers."""
    path = write(tmp_path)
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
