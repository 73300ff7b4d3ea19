"""Texts as one stream of code points in a graph, and what is done to it before it is cut into tokens.

A stream is int64 [T]: the code points of all texts of a batch, one text after the other, each closed by the mark END.
Every number from END on is a mark: no character, in no class, and what nothing is matched across.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_zoo._char_tables import COUNT, Forms, members
from model_zoo._graph_builder import Graph, Value

__all__ = [
    "BREAK",
    "END",
    "TOKEN",
    "Trie",
    "before_marks",
    "byte_table",
    "characters",
    "expand",
    "first_of_words",
    "insert",
    "is_mark",
    "longest_match",
    "lookup",
    "positions",
    "reachable",
    "shift",
    "take_tokens",
    "walk",
]

END, BREAK, TOKEN = COUNT, COUNT + 1, COUNT + 2
"""The end of a text; a boundary between words; TOKEN + i is the token of id i, found whole in the text."""

_PAGE = 256
_STRIDE = 1 << 22


def byte_table(more: Mapping[int, bytes] | None = None) -> str:
    """The vocabulary of extensions' TrieTokenizer and TrieDetokenizer in which byte b has the id b + 1."""
    entries = {value + 1: bytes([value]) for value in range(256)} | dict(more or {})
    quoted = {key: "".join(f"\\x{value:02x}" for value in content) for key, content in entries.items()}
    return "\n".join(f"{key} b'{quoted[key]}' {len(content)}" for key, content in entries.items())


def characters(g: Graph, texts: Value) -> Value:
    """The stream of `texts`, string [B]: their bytes by TrieTokenizer, and UTF-8 decoded from them."""
    table = g.op("TrieTokenizer", texts, domain="ai.onnx.contrib", vocab=byte_table())
    ends = g.op("Expand", np.array([[257]]), g.op("Concat", g.op("Shape", texts), np.array([1]), axis=0))
    flat = g.op("Reshape", g.op("Concat", table, ends, axis=1), np.array([-1]))
    byte = g.op("Compress", flat, flat > 0) - 1
    tails = [shift(g, byte, k) % 64 for k in (1, 2, 3)]
    code, high = byte, byte
    for size, lead in ((2, 0xC0), (3, 0xE0), (4, 0xF0)):
        high = byte - lead
        for tail in tails[: size - 1]:
            high = high * 64 + tail
        code = g.op("Where", byte >= lead, high, code)
    code = g.op("Where", byte == 256, END, code)
    return g.op("Compress", code, (byte < 0x80) | (byte >= 0xC0))


def positions(g: Graph, stream: Value) -> Value:
    """0, 1, … T - 1."""
    return g.op("Range", 0, g.op("Squeeze", g.op("Shape", stream)), 1)


def shift(g: Graph, values: Value, by: int, fill: int = 0) -> Value:
    """Each element's neighbour `by` places on, or back where that is negative; `fill` beyond the ends."""
    edge = np.full(abs(by), fill, np.int64)
    if by > 0:
        return g.op("Slice", g.op("Concat", values, edge, axis=0), np.array([by]), np.array([2**62]))
    return g.op("Slice", g.op("Concat", edge, values, axis=0), np.array([0]), np.array([by]))


def is_mark(stream: Value) -> Value:
    """Bool [T]: no character."""
    return stream >= END


def before_marks(g: Graph, stream: Value) -> Value:
    """Bool [T]: the neighbour before is a mark, or there is none."""
    return shift(g, stream, -1, BREAK) >= END


def first_of_words(g: Graph, stream: Value) -> Value:
    """Bool [T]: a character behind a mark."""
    return before_marks(g, stream) & ~is_mark(stream)


def insert(g: Graph, stream: Value, where: Value, value: int) -> Value:
    """The stream with `value` put before each place of `where`, bool [T]."""
    added = g.op("CumSum", where.cast(), 0)
    total = g.op("Shape", stream) + g.op("ReduceSum", where.cast(), keepdims=1)
    return g.op("ScatterElements", g.op("Expand", value, total), positions(g, stream) + added, stream)


def lookup(g: Graph, stream: Value, values: NDArray[np.integer], mark: int = 0) -> Value:
    """The value that a table, [COUNT], has for each code point, int64 [T]; `mark` for marks."""
    padded = np.full((COUNT // _PAGE + 1) * _PAGE, mark, np.int32)
    padded[:COUNT] = values
    rows: dict[bytes, int] = {}
    pages = [rows.setdefault(page.tobytes(), len(rows)) * _PAGE for page in padded.reshape(-1, _PAGE)]
    code = g.op("Min", stream, END)
    row = g.op("Gather", np.array(pages), code // _PAGE)
    return g.op("Gather", np.frombuffer(b"".join(rows), np.int32), row + code % _PAGE).cast()


def expand(g: Graph, stream: Value, forms: Forms) -> Value:
    """The stream with each code point replaced by its form, which may be empty; others stay as they are."""
    count, width = forms.rows.shape
    if count == 1:
        return stream
    which = lookup(g, stream, forms.table)
    made = g.op("Gather", forms.rows, which).cast()
    own = g.op("Concat", g.op("Unsqueeze", stream, np.array([1])), _dead(g, stream, width - 1), axis=1)
    chosen = g.op("Where", g.op("Unsqueeze", which, np.array([1])) > 0, made, own)
    flat = g.op("Reshape", chosen, np.array([-1]))
    return g.op("Compress", flat, flat >= 0)


def reachable(g: Graph, seeds: Value, after: Value) -> Value:
    """Bool [T]: the places come to from `seeds`, bool [T], by going from each place i to `after[i]`, int64 [T].

    In log2 of the longest way: all that is reached goes n steps further, with n doubled from round to round.
    """

    def double(carried: Sequence[Value]) -> tuple[Value, Sequence[Value]]:
        seen, jump = carried
        more = g.op("ScatterElements", seen, jump, seen, reduction="max")
        grown = g.op("ReduceSum", more, keepdims=0) > g.op("ReduceSum", seen, keepdims=0)
        return grown, (more, g.op("Gather", jump, jump))

    seen, _ = g.loop([seeds.cast(), after], double)
    return seen > 0


@dataclass(frozen=True)
class Trie:
    """Words over code points: `edges` from node · stride + code point to the next node, `accepts` the id at a node.

    The nodes 0 to `roots` - 1 are those where a walk may begin.
    """

    edges: dict[int, int]
    accepts: NDArray[np.int64]

    @classmethod
    def of(cls, words: Sequence[Mapping[str, int]]) -> Trie:
        """One root for each mapping from words to ids."""
        edges: dict[int, int] = {}
        accepts = [-1] * len(words)
        for root, mapping in enumerate(words):
            for word, identifier in mapping.items():
                node = root
                for code in map(ord, word):
                    key = node * _STRIDE + code
                    node = edges.get(key, -1)
                    if node < 0:
                        node = edges[key] = len(accepts)
                        accepts.append(-1)
                accepts[node] = identifier
        return cls(edges, np.array([*accepts, -1], np.int64))


def longest_match(g: Graph, stream: Value, trie: Trie, root: Value) -> tuple[Value, Value]:
    """From every place, beginning at its `root` int64 [T]: where the longest word ends, and its id; -1 without one."""
    known, targets = _edges(trie)

    def step(carried: Sequence[Value]) -> tuple[Value, Sequence[Value]]:
        node, ahead, depth, size, found = carried
        node = g.label(node * _STRIDE + ahead, known, targets, -1)
        accepted = g.op("Gather", trie.accepts, node)
        size = g.op("Where", accepted >= 0, depth, size)
        found = g.op("Where", accepted >= 0, accepted, found)
        alive = g.op("ReduceMax", node, keepdims=0) >= 0
        return alive, (node, shift(g, ahead, 1, END), depth + 1, size, found)

    none = g.op("Expand", -1, g.op("Shape", stream))
    *_, size, found = g.loop([root, stream, g.constant(1), none, none], step)
    return positions(g, stream) + size, found


def walk(g: Graph, stream: Value, trie: Trie, depth: int) -> list[Value]:
    """From every place the word of each length from 1 to `depth`: its id, int64 [T]; -1 where there is none."""
    known, targets = _edges(trie)
    node, ahead, columns = positions(g, stream) * 0, stream, []
    for _ in range(depth):
        node = g.label(node * _STRIDE + ahead, known, targets, -1)
        columns.append(g.op("Gather", trie.accepts, node))
        ahead = shift(g, ahead, 1, END)
    return columns


def _edges(trie: Trie) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    size = len(trie.edges)
    return np.fromiter(trie.edges.keys(), np.int64, size), np.fromiter(trie.edges.values(), np.int64, size)


def take_tokens(g: Graph, stream: Value, tokens: Sequence[Mapping[str, Any]]) -> Value:
    """The stream with each of `tokens` replaced by its mark: from the left, always the longest that begins there.

    They are entries of `added_tokens`; one with `lstrip` or `rstrip` takes the spaces before or behind it as well.
    """
    if not tokens:
        return stream
    place = positions(g, stream)
    trie = Trie.of([{token["content"]: token["id"] for token in tokens}])
    end, found = longest_match(g, stream, trie, place * 0)
    after = g.op("Where", found >= 0, end, g.op("Min", place + 1, g.op("ReduceMax", place)))
    seen = reachable(g, place == 0, after)
    stream = g.op("Compress", g.op("Where", found >= 0, found + TOKEN, stream), seen)
    for side in ("lstrip", "rstrip"):
        greedy = [token["id"] for token in tokens if token[side]]
        if greedy:
            stream = _without_spaces(g, stream, greedy, before=side == "lstrip")
    return stream


def _without_spaces(g: Graph, stream: Value, tokens: Sequence[int], *, before: bool) -> Value:
    """The stream less the spaces next to the marks of `tokens`."""
    space = lookup(g, stream, members(r"\s").astype(np.int32)) > 0
    others = g.op("Compress", stream, ~space)
    count = g.op("CumSum", (~space).cast(), 0)
    near = g.op("Gather", g.op("Concat", np.array([END]), others, np.array([END]), axis=0), count + int(before))
    marks = np.array([token + TOKEN for token in tokens])
    beside = g.label(near, marks, np.ones(len(marks), np.int64), 0) > 0
    return g.op("Compress", stream, ~(space & beside))


def _dead(g: Graph, stream: Value, width: int) -> Value:
    return g.op("Expand", -1, g.op("Concat", g.op("Shape", stream), np.array([width]), axis=0))
