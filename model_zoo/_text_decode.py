"""The graph that makes a text of token ids, as a tokenizer.json's decoder does with special tokens skipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from model_zoo._char_stream import byte_table, positions, shift
from model_zoo._graph_builder import Graph, Value
from model_zoo._pre_tokenize import refused
from model_zoo._token_models import byte_characters

__all__ = ["UNWRITABLE", "decode_graph"]

UNWRITABLE = dict.fromkeys((0, 0xFFFE, 0xFFFF), 0xFFFD)
"""What no text of the graph has, for `str.translate`; see `_writable`."""

_REPLACEMENT = 257


@dataclass(frozen=True)
class _Contents:
    """What each id stands for: `spelt` bytes, `raw` where it is a single byte that may be part of a character."""

    spelt: tuple[bytes, ...]
    raw: tuple[bool, ...]
    strip: bool


def decode_graph(tokenizer: Any) -> ModelProto:
    """`ids` int64 [tokens] to `text` string [1]; a byte that is no UTF-8, or not yet, is U+FFFD there.

    So are U+0000, U+FFFE and U+FFFF, which the operators cannot write.

    Raises UnsupportedError for a decoder of which no graph is made here.
    """
    definition = json.loads(tokenizer.to_str())
    decoder = definition["decoder"] or {}
    contents = _contents(tokenizer, definition, decoder)
    g = Graph()
    byte, raw = _bytes(g, g.input("ids"), contents)
    made = _lossy(g, byte) if decoder["type"] == "ByteLevel" else _fallback(g, byte, raw)
    made = _writable(g, made)
    if contents.strip:
        made = g.op("Compress", made, ~((made == ord(" ") + 1) & (positions(g, made) == 0)))
    text = g.choose(g.op("Size", made) > 0, lambda: _text(g, made), lambda: _empty(g), TensorProto.STRING)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["tokens"])
    return g.model([ids], [(text, helper.make_tensor_value_info("text", TensorProto.STRING, [1]))])


def _contents(tokenizer: Any, definition: Mapping[str, Any], decoder: Mapping[str, Any]) -> _Contents:
    skipped = {item["id"] for item in definition["added_tokens"] if item["special"]}
    names = [tokenizer.id_to_token(i) for i in range(max(tokenizer.get_vocab().values(), default=-1) + 1)]
    words = ["" if name is None or index in skipped else name for index, name in enumerate(names)]
    if decoder.get("type") == "ByteLevel":
        back = {character: byte for byte, character in byte_characters().items()}
        return _Contents(tuple(_spelt(word, back) for word in words), (True,) * len(words), False)
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    known = kinds in (["Replace", "ByteFallback", "Fuse", "Strip"], ["Replace", "ByteFallback", "Fuse"])
    if not known or not steps[0]["pattern"].get("String"):
        raise refused(f"the decoder {' and '.join(map(str, kinds))}")
    if "Strip" in kinds and (steps[3]["content"], steps[3]["start"], steps[3]["stop"]) != (" ", 1, 0):
        raise refused("a decoder that strips other than one space in front")
    pieces = [
        _byte(word) or word.replace(steps[0]["pattern"]["String"], steps[0]["content"]).encode() for word in words
    ]
    return _Contents(tuple(pieces), tuple(_byte(word) is not None for word in words), "Strip" in kinds)


def _spelt(word: str, back: Mapping[str, int]) -> bytes:
    """The bytes that the characters stand for; a word with others in it is itself."""
    return bytes(back[item] for item in word) if all(item in back for item in word) else word.encode()


def _byte(word: str) -> bytes | None:
    if len(word) != 6 or not word.startswith("<0x") or not word.endswith(">"):
        return None
    try:
        return bytes([int(word[3:5], 16)])
    except ValueError:
        return None


def _bytes(g: Graph, ids: Value, contents: _Contents) -> tuple[Value, Value]:
    """The bytes of all ids, one after the other, and for each whether it was an id of its own; both int64 [N]."""
    size = len(contents.spelt)
    lengths = np.array([*map(len, contents.spelt), 0], np.int64)
    begins = np.cumsum(lengths) - lengths
    content = np.frombuffer(b"".join(contents.spelt) or b"\0", np.uint8)
    ids = g.op("Where", (ids >= 0) & (ids < size), ids, size)
    ids = g.op("Compress", ids, g.op("Gather", lengths, ids) > 0)
    length = g.op("Gather", lengths, ids)
    total = g.op("Unsqueeze", g.op("ReduceSum", length, keepdims=0), np.array([0]))
    start = g.op("CumSum", length, 0, exclusive=1)
    ones = g.op("Expand", 1, g.op("Shape", ids))
    owner = g.op("CumSum", g.op("ScatterElements", g.op("Expand", 0, total), start, ones), 0) - 1
    from_ = g.op("Gather", g.op("Gather", begins, ids) - start, owner)
    place = g.op("Range", 0, g.op("Squeeze", total), 1)
    raw = g.op("Gather", np.array([*contents.raw, False]), g.op("Gather", ids, owner))
    return g.op("Gather", content, from_ + place).cast(), raw


@dataclass(frozen=True)
class _Decoded:
    """Of each byte: whether a character or an error begins there, whether it is an error, and what it covers."""

    begins: Value
    wrong: Value
    inside_wrong: Value


def _decoded(g: Graph, byte: Value) -> _Decoded:
    """UTF-8 by Unicode's table 3-7 of well-formed sequences; an error takes the longest beginning of one."""
    need, low, high = _leads()
    wanted = g.op("Gather", need, byte)
    tails = [shift(g, byte, k) for k in (1, 2, 3)]
    fits = (wanted > 1) & (tails[0] >= g.op("Gather", low, byte)) & (tails[0] <= g.op("Gather", high, byte))
    span = fits.cast() + 1
    for size, tail in ((3, tails[1]), (4, tails[2])):
        fits = fits & (wanted >= size) & (tail >= 0x80) & (tail < 0xC0)
        span = span + fits.cast()
    wrong = ~(wanted == span)
    covered = inside = g.op("Less", byte, 0)
    for back in (1, 2, 3):
        reaches = shift(g, span, -back) > back
        covered, inside = covered | reaches, inside | (reaches & (shift(g, wrong.cast(), -back) > 0))
    return _Decoded(~covered, wrong & ~covered, inside)


def _leads() -> tuple[Any, Any, Any]:
    need, low, high = np.zeros(256, np.int64), np.full(256, 0x80), np.full(256, 0xBF)
    need[:0x80], need[0xC2:0xE0], need[0xE0:0xF0], need[0xF0:0xF5] = 1, 2, 3, 4
    low[0xE0], high[0xED], low[0xF0], high[0xF4] = 0xA0, 0x9F, 0x90, 0x8F
    return need, low, high


def _lossy(g: Graph, byte: Value) -> Value:
    """Ids of `byte_table`, with one U+FFFD for each error."""
    found = _decoded(g, byte)
    return g.op("Compress", g.op("Where", found.wrong, _REPLACEMENT, byte + 1), ~found.inside_wrong)


def _fallback(g: Graph, byte: Value, raw: Value) -> Value:
    """A run of bytes that were ids of their own is UTF-8 as a whole, or a U+FFFD for each of its bytes."""
    changes = ~(raw.cast() == shift(g, raw.cast(), -1))
    run = g.op("CumSum", changes.cast(), 0)
    # Bytes of other ids are whole characters: within a run, an error is of the run's own bytes or reaches out of it.
    stopped = g.op("Where", raw, byte, ord("x"))
    found = _decoded(g, stopped)
    bad = g.op("ScatterElements", g.op("Expand", 0, g.op("Shape", run) + 1), run, found.wrong.cast(), reduction="max")
    return g.op("Where", raw & (g.op("Gather", bad, run) > 0), _REPLACEMENT, byte + 1)


def _writable(g: Graph, made: Value) -> Value:
    """U+FFFD for U+0000, U+FFFE and U+FFFF too: TrieDetokenizer ends a text at the first, and refuses the others."""
    wide = (made == 0xEF + 1) & (shift(g, made, 1) == 0xBF + 1) & (shift(g, made, 2) >= 0xBE + 1)
    wide = wide & (shift(g, made, 2) <= 0xBF + 1)
    kept = (shift(g, wide.cast(), -1) == 0) & (shift(g, wide.cast(), -2) == 0)
    return g.op("Compress", g.op("Where", wide | (made == 1), _REPLACEMENT, made), kept)


def _text(g: Graph, made: Value) -> Value:
    table = byte_table({_REPLACEMENT: "\ufffd".encode()})
    return g.op("TrieDetokenizer", g.op("Unsqueeze", made, np.array([0])), domain="ai.onnx.contrib", vocab=table)


def _empty(g: Graph) -> Value:
    return g.op("Constant", value_strings=[""])
