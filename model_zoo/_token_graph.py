"""The graph that makes a model's token inputs of texts, from what a tokenizer.json says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import ModelProto, TensorProto, helper

from model_zoo._char_stream import characters, take_tokens
from model_zoo._graph_builder import Graph, Value
from model_zoo._pre_tokenize import normalize, pre_tokenize, refused
from model_zoo._token_models import Tokens, byte_pairs, word_pieces
from model_zoo._token_rows import Layout, table
from model_zoo._unigram_graph import unigrams

__all__ = ["layout_of", "token_graph"]

_COLUMNS = ("input_ids", "attention_mask", "token_type_ids")


def token_graph(tokenizer: Any, names: Sequence[str]) -> ModelProto:
    """`text` string [batch] to each of `names`, int64 [batch, sequence], as the tokenizer is set up to do it.

    `names` are of input_ids, attention_mask and token_type_ids. Raises UnsupportedError for a tokenizer that has
    something of which no graph is made here.
    """
    odd = [name for name in names if name not in _COLUMNS]
    if odd:
        raise refused(f"no {', '.join(odd)}")
    definition, layout = json.loads(tokenizer.to_str()), layout_of(tokenizer)
    g = Graph()
    text = g.input("text")
    if tokenizer.normalizer is not None:
        for token in definition["added_tokens"]:
            if token["normalized"]:  # it is looked for in normalized text, so it is normalized itself
                token["content"] = tokenizer.normalizer.normalize_str(token["content"])
    ids, mask = table(g, _tokens(g, text, definition), g.op("Shape", text), layout)
    columns = {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * 0}
    outputs = [(columns[name], _info(name)) for name in names]
    return g.model([helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])], outputs)


def layout_of(tokenizer: Any) -> Layout:
    """How the tokenizer surrounds, truncates and pads a text's tokens."""
    probe = tokenizer.encode("a")
    if any(probe.type_ids):
        raise refused("token types other than 0")
    mask = probe.special_tokens_mask
    own = [index for index, special in enumerate(mask) if not special]
    first, last = (own[0], own[-1] + 1) if own else (len(mask), len(mask))
    truncation, padding = tokenizer.truncation, tokenizer.padding
    return Layout(
        before=tuple(probe.ids[:first]),
        after=tuple(probe.ids[last:]),
        limit=truncation["max_length"] if truncation else None,
        pad=padding["pad_id"],
        left=padding["direction"] == "left",
    )


def _tokens(g: Graph, text: Value, definition: Mapping[str, Any]) -> Tokens:
    added = definition["added_tokens"]
    stream = take_tokens(g, characters(g, text), [token for token in added if not token["normalized"]])
    stream = normalize(g, stream, definition["normalizer"])
    stream = take_tokens(g, stream, [token for token in added if token["normalized"]])
    stream = pre_tokenize(g, stream, definition["pre_tokenizer"])
    model = definition["model"]
    if model["type"] == "WordPiece":
        return word_pieces(g, stream, model)
    if model["type"] == "BPE":
        return byte_pairs(g, stream, model, _byte_level(definition["pre_tokenizer"]))
    if model["type"] == "Unigram":
        return unigrams(g, stream, model)
    raise refused(f"a model of the kind {model['type']}")


def _byte_level(stage: Mapping[str, Any] | None) -> bool:
    if stage is None:
        return False
    if stage["type"] == "Sequence":
        return any(map(_byte_level, stage["pretokenizers"]))
    return bool(stage["type"] == "ByteLevel")


def _info(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
