"""The tokenizer of a language model's bundle, read with the tokenizers library from `tokenizer.json`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import MissingDependencyError, UsageError
from toolkit.types import DecoderSpec

__all__ = ["Codec", "read_codec"]

_MATCH = "Use the tokenizer that the model was trained with; export again with it in the model's folder."


@dataclass(frozen=True, slots=True)
class Codec:
    """Text to tokens and back, for one model.

    `special` has the text of `bos_token`, `eos_token` and their like; `template` is the chat template, where the
    model has one. `eos` holds the tokens that end a text, `pad` what stands where no token is.
    """

    tokenizer: Any
    vocabulary: int
    special: Mapping[str, str]
    template: str | None
    eos: tuple[int, ...]
    pad: int

    def encode(self, text: str, *, special: bool = True) -> NDArray[np.int64]:
        """Tokens of the text, int64 [n], with those that the tokenizer puts around it if `special`.

        Raises UsageError for a text without tokens, or tokens that the model does not have.
        """
        tokens = np.array(self.tokenizer.encode(text, add_special_tokens=special).ids, dtype=np.int64)
        if tokens.size == 0:
            raise UsageError("the prompt has no tokens", hint="Give some text to --prompt.")
        if tokens.max() >= self.vocabulary:
            raise _mismatch(f"it made token {tokens.max()} of the prompt", self.vocabulary)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The tokens' text without special tokens; a broken character is U+FFFD."""
        text: str = self.tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True)
        return text

    def same_tokens(self, other: Codec) -> bool:
        """Whether every token has the same number in both."""
        same: bool = self.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        return same


def read_codec(assets: Path | None, spec: DecoderSpec) -> Codec:
    """Read `tokenizer.json`, and what `tokenizer_config.json`, `chat_template.jinja` and `generation_config.json` add.

    Raises UsageError where there is no tokenizer, where a file is broken, or where the tokenizer has more tokens
    than the model; MissingDependencyError without the tokenizers library.
    """
    if assets is None or not (assets / "tokenizer.json").is_file():
        raise UsageError(
            "the bundle has no tokenizer.json, so it cannot take text",
            hint="Export the model from a folder that holds its tokenizer, or give tokens as an .npz file.",
        )
    tokenizer = _read(assets / "tokenizer.json")
    config = _json(assets / "tokenizer_config.json")
    special = {name: text for name, value in config.items() if name.endswith("_token") and (text := _content(value))}
    # Without added tokens: some models' tokenizers add a few, for images say, that the text model never learnt.
    base = tokenizer.get_vocab_size(with_added_tokens=False)
    if base > spec.vocabulary:
        raise _mismatch(f"it has {base} tokens", spec.vocabulary)
    eos = _eos(spec, tokenizer, special, _json(assets / "generation_config.json"))
    pads = [spec.pad, tokenizer.token_to_id(special.get("pad_token", "")), *eos, 0]
    pad = next(token for token in pads if token is not None and 0 <= token < spec.vocabulary)
    return Codec(tokenizer, spec.vocabulary, special, _template(assets, config), eos, pad)


def _read(path: Path) -> Any:
    if importlib.util.find_spec("tokenizers") is None:
        raise MissingDependencyError("text needs the tokenizers library", hint="pip install tokenizers")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises bare Exception for whatever is wrong in the file.
        raise UsageError(f"{path} is not a tokenizer: {error}", hint="Fetch or save the file again.") from error
    # The file keeps the truncation and padding that it was last used with.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _mismatch(what: str, vocabulary: int) -> UsageError:
    return UsageError(f"the tokenizer does not match: {what}, the model has {vocabulary}", hint=_MATCH)


def _eos(
    spec: DecoderSpec, tokenizer: Any, special: Mapping[str, str], generation: Mapping[str, Any]
) -> tuple[int, ...]:
    named = generation.get("eos_token_id")
    listed = named if isinstance(named, list) else [named]
    own = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    tokens = [token for token in (*spec.eos, *listed, own) if isinstance(token, int)]
    return tuple(dict.fromkeys(tokens))


def _template(assets: Path, config: Mapping[str, Any]) -> str | None:
    path = assets / "chat_template.jinja"
    if path.is_file():
        return _text(path)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _content(value: Any) -> str | None:
    """A special token is a string, or an object that holds it as `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise UsageError(f"{path} is not readable JSON: {error}", hint="Fetch or save the file again.") from error
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="Fetch or save the file again.") from error
