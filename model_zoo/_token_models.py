"""From words to token ids in a graph: WordPiece's longest match and the merges of byte-pair encoding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_zoo._char_stream import (
    END,
    TOKEN,
    Trie,
    before_marks,
    first_of_words,
    is_mark,
    longest_match,
    positions,
    reachable,
    shift,
)
from model_zoo._graph_builder import Graph, Value
from model_zoo._pre_tokenize import refused

__all__ = ["Tokens", "byte_characters", "byte_pairs", "flattened", "row_numbers", "tokens_of", "word_pieces"]

_FAR, _NONE = 1 << 40, -2
_SPACE = ord("▁")


@dataclass(frozen=True)
class Tokens:
    """The token ids of all texts, int64 [M], and the number of the text that each is from, int64 [M]."""

    ids: Value
    rows: Value


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in the vocabulary of byte-level tokenizers, as GPT-2 has it."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def word_pieces(g: Graph, stream: Value, model: Mapping[str, Any]) -> Tokens:
    """Each word, a run between marks, in the longest pieces from its beginning; UNK where one is missing.

    The algorithm is that of BERT's wordpiece tokenizer: a word of more than `max_input_chars_per_word` is UNK too.
    """
    vocabulary, prefix = model["vocab"], model["continuing_subword_prefix"]
    starts = {word: identifier for word, identifier in vocabulary.items() if word}
    parts = {word[len(prefix) :]: vocabulary[word] for word in starts if word.startswith(prefix) and word != prefix}
    mark, begins = is_mark(stream), first_of_words(g, stream)
    root = g.op("Where", before_marks(g, stream), 0, 1)
    end, piece = longest_match(g, stream, Trie.of([starts, parts]), root)
    visited = reachable(g, begins, g.op("Where", piece >= 0, end, positions(g, stream))) & ~mark
    word = g.op("CumSum", (begins | mark).cast(), 0)
    none = g.op("Expand", 0, g.op("Shape", stream) + 1)
    stuck = g.op("ScatterElements", none, word, (visited & (piece < 0)).cast(), reduction="max")
    length = g.op("ScatterElements", none, word, (~mark).cast(), reduction="add")
    unknown = (stuck > 0) | (length > int(model["max_input_chars_per_word"]))
    bad = g.op("Gather", unknown, word)
    ids = g.op("Where", visited & ~bad, piece, -1)
    ids = g.op("Where", begins & bad, int(vocabulary[model["unk_token"]]), ids)
    return tokens_of(g, g.op("Where", stream >= TOKEN, stream - TOKEN, ids), row_numbers(g, stream))


def byte_pairs(g: Graph, stream: Value, model: Mapping[str, Any], byte_level: bool) -> Tokens:
    """Each word, a run between marks, in bytes or characters, then merged pair by pair in the order of `merges`.

    In every word the pair that stands first in `merges` goes first. All its places are merged at once where no merge
    that takes a token stands before the one that makes it, else one after the other from the left.
    """
    merges = _Merges.of(model)
    if model.get("ignore_merges"):
        stream = _whole_words(g, stream, model, byte_level)
    columns = _bytes(g, stream, _alphabet_ids(model)) if byte_level else _letters(g, stream, model)
    special = [g.op("Where", stream >= TOKEN, stream - TOKEN, g.op("Where", stream == END, -1, _NONE))]
    mark = is_mark(stream)
    columns = [
        g.op("Where", mark, other, column)
        for column, other in zip(columns, special + [g.constant(_NONE)] * 3, strict=True)
    ]
    word = g.op("CumSum", mark.cast(), 0) + g.op("CumSum", mark.cast(), 0, exclusive=1)
    if merges.apart and not byte_level:
        begins = (stream == _SPACE) & ~(shift(g, stream, -1) == _SPACE)
        word = word + g.op("CumSum", begins.cast(), 0)
    flat = flattened(g, columns)
    kept = flat > _NONE
    words, rows = (g.op("Compress", flattened(g, [item] * 4), kept) for item in (word, row_numbers(g, stream)))
    number = g.op("ReduceMax", word) + 1
    row_of = g.op("ScatterElements", g.op("Expand", 0, number), words, rows)
    ids, words = _merge(g, g.op("Compress", flat, kept), words, merges)
    return tokens_of(g, ids, g.op("Gather", row_of, words))


@dataclass(frozen=True)
class _Merges:
    """Pairs of ids as first · size + second, in their order, and what each makes.

    `ordered`: each token is made before it is taken. `apart`: nothing is joined to a ▁ behind it but another ▁, so that
    words of one text are merged side by side.
    """

    pairs: NDArray[np.int64]
    made: NDArray[np.int64]
    size: int
    ordered: bool
    apart: bool

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> _Merges:
        odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
        if odd:
            raise refused(f"byte pairs with {', '.join(odd)}")
        vocabulary = model["vocab"]
        pairs = [tuple(item.split(" ")) if isinstance(item, str) else tuple(item) for item in model["merges"]]
        size = max(vocabulary.values()) + 1
        keys = [vocabulary[first] * size + vocabulary[second] for first, second in pairs]
        made = [vocabulary[first + second] for first, second in pairs]
        space = chr(_SPACE)
        apart = space in vocabulary and all(
            space not in second or not (first + second).strip(space) for first, second in pairs
        )
        return cls(np.array(keys, np.int64), np.array(made, np.int64), size, _in_order(pairs), apart)


def _in_order(pairs: Sequence[tuple[str, ...]]) -> bool:
    last: dict[str, int] = {}
    for rank, (first, second) in enumerate(pairs):
        last[first + second] = rank
    return all(max(last.get(first, -1), last.get(second, -1)) < rank for rank, (first, second) in enumerate(pairs))


def _merge(g: Graph, ids: Value, words: Value, merges: _Merges) -> tuple[Value, Value]:
    made = np.append(merges.made, -1)
    number = g.op("Unsqueeze", g.op("ReduceMax", words, keepdims=0) + 1, np.array([0]))
    far = g.op("Expand", _FAR, number)

    def step(carried: Sequence[Value]) -> tuple[Value, Sequence[Value]]:
        ids, words = carried
        joined = (words == shift(g, words, 1, -1)) & (ids >= 0)
        pair = g.op("Where", joined, ids * merges.size + shift(g, ids, 1), -1)
        rank = g.label(pair, merges.pairs, np.arange(len(merges.pairs)), _FAR)
        best = g.op("Gather", g.op("ScatterElements", far, words, rank, reduction="min"), words)
        chosen = (rank == best) & (rank < _FAR)
        chosen = _every_other(g, chosen) if merges.ordered else _leftmost(g, chosen, words, far)
        merged = g.op("Gather", made, g.op("Min", rank, len(merges.pairs)))
        kept = shift(g, chosen.cast(), -1) == 0
        ids = g.op("Compress", g.op("Where", chosen, merged, ids), kept)
        return g.op("ReduceMin", rank, keepdims=0) < _FAR, (ids, g.op("Compress", words, kept))

    if not len(merges.pairs):
        return ids, words
    after = g.loop([ids, words], step)
    return after[0], after[1]


def _every_other(g: Graph, chosen: Value) -> Value:
    """Of pairs that overlap, as in "aaa", the first, third, fifth of each run."""
    place = positions(g, chosen)
    begins = chosen & (shift(g, chosen.cast(), -1) == 0)
    firsts = g.op("Concat", np.array([0]), g.op("Compress", place, begins), axis=0)
    run = g.op("CumSum", begins.cast(), 0)
    return chosen & ((place - g.op("Gather", firsts, run)) % 2 == 0)


def _leftmost(g: Graph, chosen: Value, words: Value, far: Value) -> Value:
    place = positions(g, chosen)
    own = g.op("Where", chosen, place, _FAR)
    first = g.op("ScatterElements", far, words, own, reduction="min")
    return chosen & (place == g.op("Gather", first, words))


def _whole_words(g: Graph, stream: Value, model: Mapping[str, Any], byte_level: bool) -> Value:
    """Words that are in the vocabulary and that merges do not lead to, as the mark of their token."""
    found = _unreached(model)
    if byte_level:
        back = {character: byte for byte, character in byte_characters().items()}
        spelt = {bytes(back[c] for c in word): i for word, i in found.items() if all(c in back for c in word)}
        found = {word.decode(): i for word, i in spelt.items() if _is_text(word)}
    if not found:
        return stream
    begins = first_of_words(g, stream)
    end, token = longest_match(g, stream, Trie.of([found]), positions(g, stream) * 0)
    whole = begins & (token >= 0)
    whole = whole & (g.op("Gather", stream, g.op("Max", end, 0)) >= END)
    word = g.op("CumSum", (begins | is_mark(stream)).cast(), 0)
    none = g.op("Expand", 0, g.op("Shape", stream) + 1)
    gone = g.op("Gather", g.op("ScatterElements", none, word, whole.cast(), reduction="max"), word) > 0
    return g.op("Compress", g.op("Where", whole, token + TOKEN, stream), whole | ~gone)


def _unreached(model: Mapping[str, Any]) -> dict[str, int]:
    from tokenizers import Tokenizer

    plain = {"version": "1.0", "added_tokens": [], "model": {**model, "ignore_merges": False}}
    parts = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    words = list(model["vocab"])
    encodings = Tokenizer.from_str(json.dumps(plain | parts)).encode_batch(words, add_special_tokens=False)
    ids = model["vocab"]
    return {word: ids[word] for word, found in zip(words, encodings, strict=True) if found.ids != [ids[word]]}


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _alphabet_ids(model: Mapping[str, Any]) -> NDArray[np.int64]:
    """The id of each byte's character; one that the vocabulary lacks is left out, or unknown, as by the library."""
    vocabulary = model["vocab"]
    unknown = vocabulary.get(model.get("unk_token"), _NONE)
    spelt = byte_characters()
    if unknown != _NONE and any(character not in vocabulary for character in spelt.values()):
        raise refused("bytes without a token beside an unknown token")
    return np.array([vocabulary.get(spelt[byte], _NONE) for byte in range(256)], np.int64)


def _fallback_ids(vocabulary: Mapping[str, int]) -> NDArray[np.int64]:
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise refused(f"no token for {len(missing)} of the 256 bytes")
    return np.array([vocabulary[name] for name in names], np.int64)


def _bytes(g: Graph, stream: Value, ids: NDArray[np.int64]) -> list[Value]:
    """The ids of the one to four bytes of each character in UTF-8, four times int64 [T]; _NONE where there is none."""
    code = g.op("Min", stream, END - 1)
    more = (code >= 0x80).cast() + (code >= 0x800).cast() + (code >= 0x10000).cast()
    powers = 64 ** np.arange(4)
    columns = []
    for place in range(4):
        behind = g.op("Max", more - place, 0)
        rest = code // g.op("Gather", powers, behind)
        byte = rest + g.op("Gather", np.array([0, 0xC0, 0xE0, 0xF0]), more) if place == 0 else rest % 64 + 0x80
        found = g.op("Gather", ids, byte)
        columns.append(found if place == 0 else g.op("Where", more >= place, found, _NONE))
    return columns


def _letters(g: Graph, stream: Value, model: Mapping[str, Any]) -> list[Value]:
    """The id of each character; where it has none those of its bytes, or that of the unknown token."""
    single = {ord(word): identifier for word, identifier in model["vocab"].items() if len(word) == 1}
    own = g.label(stream, np.array(list(single)), np.array(list(single.values())), _NONE)
    if model.get("byte_fallback"):
        first, *others = _bytes(g, stream, _fallback_ids(model["vocab"]))
        missing = own == _NONE
        return [g.op("Where", missing, first, own), *(g.op("Where", missing, item, _NONE) for item in others)]
    none = g.op("Where", own == _NONE, _NONE, _NONE)
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is None:
        return [own, none, none, none]
    missing = (own == _NONE) & ~is_mark(stream)
    again = missing & g.op("Cast", shift(g, missing.cast(), -1), to=9) if model.get("fuse_unk") else own >= END
    own = g.op("Where", missing, g.op("Where", again, _NONE, int(unknown)), own)
    return [own, none, none, none]


def flattened(g: Graph, columns: Sequence[Value]) -> Value:
    """Columns int64 [T] place by place as one, int64 [T · n]."""
    stacked = g.op("Concat", *(g.op("Unsqueeze", item, np.array([1])) for item in columns), axis=1)
    return g.op("Reshape", stacked, np.array([-1]))


def row_numbers(g: Graph, stream: Value) -> Value:
    """The number of the text that each place belongs to, its END included."""
    return g.op("CumSum", (stream == END).cast(), 0, exclusive=1)


def tokens_of(g: Graph, ids: Value, rows: Value) -> Tokens:
    """Those of the ids that are not negative, with their rows."""
    kept = ids >= 0
    return Tokens(g.op("Compress", ids, kept), g.op("Compress", rows, kept))
