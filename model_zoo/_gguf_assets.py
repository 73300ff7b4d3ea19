"""The files that a GGUF file stands for, written once into the user's cache: configuration and tokenizer."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_zoo import _gguf, _gguf_file
from toolkit.errors import MissingDependencyError, UnsupportedError, UsageError

__all__ = ["folder"]

_LAYOUT = "1"
_BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id")
_INSTEAD = "Put the tokenizer.json and tokenizer_config.json of the original model beside the file."

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGITS = ("smollm", "refact", "starcoder", "command-r")
_PLAIN = ("gpt-2", "gpt2", "olmo", "mpt")
_SPLITS = {
    "llama-bpe": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
}
_SPLITS |= dict.fromkeys(("llama3", "llama-v3", "smaug-bpe", "falcon3"), _SPLITS["llama-bpe"])
_SPLITS |= dict.fromkeys(("deepseek-r1-qwen", "stablelm2"), _SPLITS["qwen2"])


def folder(path: Path) -> Path:
    """A folder with config.json, generation_config.json, and the tokenizer where the file holds one.

    It is made from the header alone, once for each header, and appears whole or not at all. Where a tokenizer.json
    lies beside the GGUF file, that one is taken. Raises as `config_of` does, and UnsupportedError for a tokenizer that
    cannot be converted, MissingDependencyError where this version of transformers needs the gguf package for it.
    """
    target = _root() / f"{_gguf.model_name(path)}-{_key(path)}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gguf-") as work:
            made = Path(work) / "made"
            made.mkdir()
            _write(path, made, Path(work))
            _publish(made, target)
    except OSError as error:
        raise UsageError(
            f"cannot write the tokenizer of {path} to {target.parent}: {error.strerror or error}",
            hint="Free up space there, or set XDG_CACHE_HOME to a folder that can be written to.",
        ) from error
    return target


def _root() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("transformer-export-toolkit")) / "gguf"


def _key(path: Path) -> str:
    """A hash of all that the files are made from."""
    import transformers

    found = hashlib.sha256(f"{_LAYOUT} {transformers.__version__} ".encode())
    with path.open("rb") as file:
        found.update(file.read(_gguf_file.read(path).end))
    for name in _BESIDE:
        beside = path.with_name(name)
        if beside.is_file():
            found.update(name.encode() + hashlib.sha256(beside.read_bytes()).digest())
    return found.hexdigest()[:12]


def _publish(made: Path, target: Path) -> None:
    """Rename into place; somebody else may have been quicker, with the same files."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _write(path: Path, to: Path, work: Path) -> None:
    config = _gguf.config_of(path)
    _json(to / "config.json", config)
    ids = {key: config[key] for key in _GENERATION if config[key] is not None}
    _json(to / "generation_config.json", ids)
    if path.with_name("tokenizer.json").is_file():
        for name in _BESIDE:
            if path.with_name(name).is_file():
                shutil.copyfile(path.with_name(name), to / name)
    elif "tokenizer.ggml.model" in _gguf_file.read(path).metadata:
        _write_tokenizer(path, to, work)


def _write_tokenizer(path: Path, to: Path, work: Path) -> None:
    file = _gguf_file.read(path)
    tokenizer = _converted(path, work)
    if file.metadata["tokenizer.ggml.model"] == "gpt2":
        tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer(path, file.metadata)
    tokenizer.save_pretrained(to, save_jinja_files=False)
    settings = json.loads((to / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "backend"):
        settings.pop(name, None)
    # The name that every version of transformers, and onnxruntime-genai, know this class by.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_max_length"] = file.whole("context_length")
    _json(to / "tokenizer_config.json", settings)


def _converted(path: Path, work: Path) -> Any:
    """The tokenizer as transformers reads it from the file, alone in its folder: others would be read with it."""
    from transformers import PreTrainedTokenizerFast

    alone = work / "alone"
    alone.mkdir()
    (alone / "model.gguf").symlink_to(path.resolve())
    try:
        return PreTrainedTokenizerFast.from_pretrained(alone, gguf_file="model.gguf", local_files_only=True)
    except ImportError as error:
        raise MissingDependencyError(
            f"reading the tokenizer of {path} needs the gguf package", hint="pip install 'gguf>=0.17'"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnsupportedError(f"the tokenizer in {path} cannot be converted: {reason}", hint=_INSTEAD) from error


def _pre_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Any:
    """How text is cut before byte pairs are merged, by llama.cpp's name for it; a wrong cut gives other tokens."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    name = str(metadata.get("tokenizer.ggml.pre", "gpt-2"))
    if name in _DIGITS:
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if name in _PLAIN:
        return ByteLevel(add_prefix_space=False)
    if name in _SPLITS:
        return Sequence([Split(Regex(_SPLITS[name]), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    known = ", ".join(sorted((*_DIGITS, *_PLAIN, *_SPLITS)))
    raise UnsupportedError(f"{path}: the pre-tokenizer '{name}' is not known here", hint=f"Known: {known}. {_INSTEAD}")


def _json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
